"""How the documentation is built: Markdown, and every example in it is run."""

from importlib.metadata import version as installed

project = "qntx-es"
author = "qntx-es contributors"
version = release = installed("qntx-es")

extensions = ["myst_parser", "sphinx.ext.doctest"]
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"{project} {version}"
