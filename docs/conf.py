"""The site of the documentation, built by `make docs`.

Formulas become MathML when the site is built, so that one that cannot be rendered ends the
build by name, and pages need no script.
"""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

SPECIAL = re.compile(r"([*|]|(?<=\w)_(?!\w))")  # To reStructuredText.

logger = logging.getLogger(__name__)

project = "diffusion_jax"
copyright = "the authors of diffusion_jax"
extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
include_patterns = ["docs/**", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = ["docs/_build"]
root_doc = "docs/index"
html_theme = "furo"
html_math_renderer = "mathml"
default_role = "code"
napoleon_use_ivar = True

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "undoc-members": False}
apidoc_modules = [
    {
        "path": "../diffusion_jax",
        "destination": "docs/api",
        "exclude_patterns": ["**/runtime/start.py"],
        "separate_modules": True,
        "module_first": True,
    }
]


def mathml(self, node: nodes.Node) -> None:
    """Write a formula, inline or displayed; warn, by its place, of what is not rendered."""
    formula = node.astext()
    is_block = isinstance(node, nodes.math_block)
    try:
        text = convert(formula, display="block" if is_block else "inline")
        unknown = re.findall(r"\\[a-zA-Z]+", text)
        braces = re.sub(r"\\[{}]", "", formula)
        if braces.count("{") != braces.count("}"):
            unknown.append("an open brace")
    except Exception as error:
        text, unknown = "", [repr(error)]
    if unknown:
        logger.warning("%r does not render: %s", formula, unknown[0], location=node)
    self.body.append(text)
    raise nodes.SkipNode


def plain(app, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Take docstrings for plain text, except names in backticks and sections.

    What is indented by four, after an empty line, is a formula and stays as it stands.
    """
    found: list[str] = []
    is_formula = False
    for line in lines:
        if line.startswith("    ") and found and not found[-1] and not is_formula:
            is_formula = all(not x.startswith(" ") for x in found[-2:])
            found += ["::", ""] * is_formula
        elif line and not line.startswith("    "):
            is_formula = False
        if not is_formula:
            pieces = line.split("`")
            pieces[::2] = [SPECIAL.sub(r"\\\1", text) for text in pieces[::2]]
            line = "`".join(pieces)
        found.append(line)
    lines[:] = found


def for_myst(app, name: str, source: list[str]) -> None:
    """Turn GitHub's inline formulas into MyST's, the index's links into its contents."""
    text = re.sub(r"\$`(.+?)`\$", r"$\1$", source[0])
    if name == root_doc:
        pages = re.findall(r"\[([^]]+)\]\(([\w./-]+)\.md\)", text)
        listed = [f"{title} <{page}>" for title, page in [*pages, ("API", "api/modules")]]
        contents = "\n".join(listed)
        text += "\nEvery public function and class: [API](api/modules).\n"
        text += f"\n```{{toctree}}\n:hidden:\n\n{contents}\n```\n"
    source[0] = text


def setup(app) -> None:
    """Register the renderer of formulas and the reader of inline ones."""
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("source-read", for_myst)
    app.connect("autodoc-process-docstring", plain, priority=1)  # Before napoleon.
