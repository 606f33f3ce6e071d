"""Pieces of HTML, in which every text from outside is escaped."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

from diffusion_jax.runs.report.facts import Picture
from diffusion_jax.runtime.text import shown


class Html(str):
    """Text that is HTML already; all other text is escaped where it is put in."""


def escaped(value: object) -> Html:
    """Return a value as HTML on one line: what it is of HTML stays, the rest is escaped."""
    return value if isinstance(value, Html) else Html(html.escape(shown(value)))


def joined(parts: Iterable[object], between: str = "\n") -> Html:
    """Return the parts, escaped, one after the other; `between` is HTML."""
    return Html(between.join(map(escaped, parts)))


def element(name: str, *content: object, **attributes: str) -> Html:
    """Return an element; a trailing _ of an attribute is left out, another _ is a -."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{given}>{joined(content, '')}</{name}>")


def table(
    caption: str,
    heads: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    is_text: bool = False,
) -> Html:
    """Return a table whose first column names the rows, in a box that can be scrolled.

    Args:
      caption: its name.
      heads: names of the columns.
      rows: a cell for each column; columns without any text in them are left out.
      is_text: whether cells may have several lines.
    """
    rows = [[escaped(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    head = joined((element("th", heads[i], scope="col") for i in kept), "")
    lines = [
        element(
            "tr",
            element("th", row[kept[0]], scope="row"),
            *(element("td", row[i]) for i in kept[1:]),
        )
        for row in rows
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", head)),
        element("tbody", joined(lines)),
    )
    return element(
        "div",
        whole,
        role="region",
        aria_label=caption,
        tabindex="0",
        class_="scroll wrap" if is_text else "scroll",
    )


def details(summary: object, *content: object, **attributes: str) -> Html:
    """Return content that is hidden until it is asked for."""
    return element("details", element("summary", summary), *content, **attributes)


def facts(pairs: Mapping[str, object]) -> Html:
    """Return a list of names and values; None is left out."""
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value))
            for name, value in pairs.items()
            if value is not None
        ),
    )


def source(picture: Picture) -> Html:
    """Return a picture as the URI of its own bytes."""
    return Html(f"data:{picture.kind};base64,{base64.b64encode(picture.content).decode()}")


def image(picture: Picture, alt: str, **attributes: str) -> Html:
    """Return a picture that is part of the page."""
    given = {"src": source(picture), "alt": alt, **attributes}
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in given.items()
    )
    return Html(f"<img{text}>")


def figure(picture: Picture, caption: object, alt: str) -> Html:
    """Return a picture with its caption."""
    return element("figure", image(picture, alt), element("figcaption", caption))
