"""Draw docs/images/report.png: the report of runs/digits in a window and on a phone.

    python train.py --config configs/digits.py
    python sample.py --workdir runs/digits --num 64 --sampler ddim --steps 50 --show_chain
    python report.py --workdir runs/digits
    python benchmarks/report_picture.py

It needs Chromium, and Playwright of the extra `dev`.
"""

import io
import pathlib
import shutil

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = pathlib.Path(__file__).parent.parent
HEIGHT = 1480
WINDOW, PHONE, GAP = 1000, 390, 24


def picture(browser: Browser, width: int, colours: str, at: str) -> Image.Image:
    """Return the page from the element `at` on, its first grid and frame 20 of a chain."""
    page = browser.new_page(
        viewport={"width": width, "height": HEIGHT}, color_scheme=colours
    )
    page.goto((ROOT / "runs/digits/report.html").absolute().as_uri())
    for slider, value in (("#grid-slider", 0), ("#chain-0-slider", 19)):
        move = "(e, to) => { e.value = to; e.dispatchEvent(new Event('input')); }"
        page.locator(slider).evaluate(move, value)
    page.locator(at).evaluate("(e) => e.scrollIntoView()")
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    return image


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        window = picture(browser, WINDOW, "light", "body")
        phone = picture(browser, PHONE, "dark", "#samples")
        browser.close()
    whole = Image.new("RGB", (WINDOW + GAP + PHONE, HEIGHT), (136, 136, 136))
    whole.paste(window, (0, 0))
    whole.paste(phone, (WINDOW + GAP, 0))
    few = whole.quantize(
        200, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
    )
    few.save(ROOT / "docs/images/report.png", optimize=True)


if __name__ == "__main__":
    main()
