"""Table and plot of the newest figures of `make bench`, for docs/performance.md.

    python benchmarks/against/table.py

The table replaces what stands between the two comments on that page.
"""

import json
import pathlib
import re
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "compare.jsonl"
PICTURE = ROOT / "docs" / "images" / "against.png"
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
WORDS = {
    "forward": "forward pass",
    "train": "train step",
    "sample": "sampling",
    "bound": "bits/dim, 50 terms",
    "load": "loading",
}
BEST = "best of theirs over ours, time"
NETS = {"cifar10": "CIFAR-10 network", "digits": "digits network"}


def newest(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The last line of each figure."""
    return {line["figure"]: line for line in map(json.loads, path.open())}


def said(case: str) -> str:
    """A case in words."""
    work, config, batch, *rest = case.split()
    name = f"{WORDS[work]}, {NETS[config]}"
    if work == "load":
        name = f"{WORDS[work]} 32x32 images from {rest[0]}"
    if work == "sample":
        name = f"{rest[1]}-step {rest[0].upper()}, {NETS[config]}"
    return f"{name}, batch {batch}"


def rows(lines: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each case the figures that are shown."""
    found = []
    for figure, line in lines.items():
        case, _, rest = figure.partition(": ")
        if rest != BEST:
            continue
        of_case = {
            f.partition(": ")[2]: x["value"]
            for f, x in lines.items()
            if f.startswith(f"{case}: ")
        }
        ratio = re.compile(r"(.*) over ours, time")
        variants = {
            m[1]: value
            for f, value in of_case.items()
            if (m := ratio.fullmatch(f)) and m[1] != "best of theirs"
        }
        best = min(variants, key=lambda v: variants[v])
        found.append(
            {
                "case": said(case),
                "variants": variants,
                "best": best,
                "seconds": of_case["ours, seconds"],
                "least": of_case[f"{best} over ours, least"],
                "most": of_case[f"{best} over ours, most"],
                "target": line["target"],
                "memory": of_case["ours, largest memory, GiB"],
                "their_memory": of_case[f"{best}, largest memory, GiB"],
                "share": of_case.get("ours, share of the fastest matrix product"),
            }
        )
    return found


def table(lines: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    text = [
        "| work | ours, s | the best of theirs, over ours | wanted "
        "| memory, GiB: ours, theirs | of the fastest matrix product |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows(lines):
        share = "" if row["share"] is None else f"{100 * row['share']:.0f} %"
        ratio = row["variants"][row["best"]]
        wanted = row["target"].replace(">=", "at least")
        text.append(
            f"| {row['case']} | {row['seconds']:.3g} | {ratio:.2f} ({row['least']:.2f} to "
            f"{row['most']:.2f}), {row['best']} | {wanted} "
            f"| {row['memory']:.2f}, {row['their_memory']:.2f} | {share} |"
        )
    commands = (
        ("start up digits 64: ours, warm, seconds to the first step", "{:.1f} s"),
        ("start up digits 64: ours, cold, seconds to the first step", "{:.1f} s"),
        ("start up digits 64: theirs, seconds to the first step", "{:.1f} s"),
        ("whole training digits 64: ours, images/s", "{:.0f}"),
        ("whole training digits 64: theirs, images/s", "{:.0f}"),
        ("whole training digits 64: ours over theirs, images/s", "{:.2f}"),
    )
    text += ["", "| `train.py` and diffusers' example, digits | |", "| --- | --- |"]
    for figure, form in commands:
        if figure in lines:
            name = figure.partition(": ")[2]
            text.append(f"| {name} | {form.format(lines[figure]['value'])} |")
    shown = [
        line
        for figure, line in lines.items()
        if figure.endswith(BEST) or figure in dict(commands)
    ]
    last = max(shown, key=lambda line: line["date"])
    dates = " and ".join(sorted({line["date"] for line in shown}))
    revisions = sorted({line["revision"] for line in shown})
    text += [
        "",
        f"*{dates}, {last['machine']}, Python {last['python']}, jax {last['jax']}, "
        f"PyTorch {last['torch']}, diffusers {last['diffusers']}, revisions "
        f"{', '.join(revisions)}.*",
    ]
    return "\n".join(text)


def plot(lines: dict[str, dict[str, Any]]) -> None:
    """Each variant's time over ours; right of 1 we are faster."""
    shown = [row for row in rows(lines) if "loading" not in row["case"]][::-1]
    names = sorted({v for row in shown for v in row["variants"]}, reverse=True)
    figure, axes = plt.subplots(figsize=(8, 0.75 * len(shown) + 1))
    for i, row in enumerate(shown):
        for variant, value in row["variants"].items():
            j = names.index(variant)
            first = i == next(k for k, r in enumerate(shown) if variant in r["variants"])
            axes.barh(
                i + 0.25 * (j - (len(names) - 1) / 2),
                value,
                0.23,
                color=f"C{j}",
                label=f"PyTorch, {variant}" if first else None,
            )
        if row["target"]:
            wanted = float(row["target"].split()[1])
            axes.plot([wanted] * 2, [i - 0.4, i + 0.4], "k:", linewidth=1)
    axes.axvline(1, color="k", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [row["case"] for row in shown])
    axes.set_xlabel("their time over ours (dotted: what we want)")
    figure.legend(loc="upper center", ncols=len(names), fontsize="small")
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(PICTURE, dpi=120)


def main() -> int:
    if not RESULTS.exists():
        print(f"{RESULTS} is missing: run make bench", file=sys.stderr)
        return 2
    lines = newest(RESULTS)
    page = ROOT / "docs" / "performance.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(lines)}\n{END}{after}")
    plot(lines)
    print(f"wrote the table in {page} and {PICTURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
