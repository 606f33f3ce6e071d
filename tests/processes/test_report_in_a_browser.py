"""The report in a real browser: offline, by keyboard, in light and dark, on a phone."""

import json
import shutil

import pytest

from diffusion_jax.jobs import report
from diffusion_jax.runs import events
from report_runs import add_chain, make_run, metrics

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (apt: chromium)")
VIEWS = {  # Widths of a window, and its colours.
    "light": (1200, "light"),
    "dark": (1200, "dark"),
    "phone": (360, "light"),
    "dark phone": (360, "dark"),
}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of one run and of two, with something in every section."""
    folder = tmp_path_factory.mktemp("runs")
    a = make_run(folder / "a", num_grids=4)
    add_chain(a)
    events.add(a, events.SKIPPED, 12, "update skipped: loss or gradient is not finite")
    events.add(a, events.RESUMED, 20, "python train.py --config x.py")
    (a / "evaluations").mkdir()
    for steps in (5, 10):
        figures = {"FD-pca20": {"value": 9.0 / steps, "standard_error": 0.25}}
        note = {"kind": "quality", "sampler": "ddim", "steps": steps, "figures": figures}
        (a / f"evaluations/{steps}.json").write_text(json.dumps(note))
    b = make_run(folder / "b", list(metrics(40, 2.0)), checkpoint_every=20)
    return {"one": report.write([a]), "two": report.write([a, b])}


@pytest.fixture
def opened(browser, pages):
    """Open a page in a view; at the end, no error and no request was seen."""
    seen, contexts = [], []

    def open_page(name, view="light", **options):
        width, colours = VIEWS[view]
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=colours, **options
            )
        )
        page = contexts[-1].new_page()
        page.on("console", lambda said: seen.append(said.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    own = tuple(path.as_uri() for path in pages.values())
    assert [text for text in seen if not text.startswith((*own, "data:"))] == []


@pytest.mark.parametrize(
    ("name", "view"),
    [("one", "light"), ("one", "dark phone"), ("two", "dark"), ("two", "phone")],
)
def test_axe_finds_no_fault_and_the_page_fits_the_window(opened, name, view):
    page = opened(name, view)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    said = [(v["id"], v["impact"], v["nodes"][0]["html"][:200]) for v in found]
    assert [v for v in said if v[1] in ("serious", "critical", "moderate")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_table_of_a_chart_has_the_numbers_of_metrics_jsonl(opened, pages):
    page = opened("one")
    text = (pages["one"].parent / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    page.get_by_text("Numbers: Loss", exact=True).click()
    rows = page.locator("#chart-0 .numbers tbody tr").all()
    found = {}
    for row in rows:
        step, *cells = row.locator("th, td").all_inner_texts()
        found[int(step)] = [float(cell) for cell in cells]
    for name, at in (("loss", 0), ("held_out_loss", 1)):
        wanted = {line["step"]: line[name] for line in lines if name in line}
        assert {step: cells[at] for step, cells in found.items()} == wanted


# Whether the canvas of a chart has pixels of each of its curves' colours.
HAS_COLOURS = """(box) => {
  const canvas = box.querySelector("canvas"), context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let i = 0; i < pixels.length; i += 4)
    if (pixels[i + 3] === 255) seen.add([pixels[i], pixels[i + 1], pixels[i + 2]].join());
  const style = getComputedStyle(document.documentElement);
  return [...box.querySelectorAll(".u-legend .u-series")].slice(1).map((_, i) => {
    const hex = style.getPropertyValue("--c" + (i % 6)).trim();
    return seen.has([1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)).join());
  });
}"""


@pytest.mark.parametrize(("name", "view"), [("one", "dark"), ("two", "light")])
def test_every_chart_has_its_curves_in_their_colours(opened, name, view):
    page = opened(name, view)
    charts = page.locator(".chart").all()
    assert len(charts) >= 8
    for chart in charts:
        drawn = chart.evaluate(HAS_COLOURS)
        assert drawn and all(drawn), chart.inner_text()


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_slider_moves_the_samples_by_keyboard(opened, name):
    page = opened(name)
    data = json.loads(page.locator("#data").text_content())
    slider, images = page.locator("#grid-slider"), page.locator("#grids img")
    assert images.count() == len(data["runs"])
    slider.focus()
    for key, step in (("ArrowLeft", data["steps"][-2]), ("Home", data["steps"][0])):
        page.keyboard.press(key)
        assert slider.get_attribute("aria-valuetext") == f"step {step}"
        for image, grids in zip(images.all(), data["grids"], strict=True):
            wanted = [grid for grid in grids if grid["step"] <= step][-1]
            assert image.get_attribute("src") == wanted["src"]
            assert image.evaluate("(i) => i.decode().then(() => i.naturalWidth)") == 40


def test_a_chain_is_stepped_and_played_and_does_not_start_by_itself(opened):
    page = opened("one", reduced_motion="reduce")
    frames = json.loads(page.locator("#data").text_content())["chains"][0]
    player = page.locator(".player")

    def shown():
        source = player.locator("img").get_attribute("src")
        return [frame["src"] for frame in frames].index(source)

    last = len(frames) - 1
    page.wait_for_timeout(300)
    assert shown() == last
    player.get_by_role("button", name="One frame back").press("Enter")
    assert shown() == last - 1
    player.get_by_role("button", name="One frame forth").click()
    assert shown() == last
    player.locator("input").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert shown() == 1 and player.locator("output").inner_text() == "frame 2 of 5"
    player.get_by_role("button", name="Play").click()
    assert player.get_by_role("button", name="Pause").is_visible()
    sync_api.expect(player.locator("input")).to_have_value("4")
    assert shown() == last and player.get_by_role("button", name="Play").is_visible()
