"""The documentation site: ``make docs`` builds it into ``build/docs``.

The folder of Sphinx's sources is the root of the repository, so that a link between two files, wherever they are,
leads to the same place on the site as it does among the files themselves.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # site_extension.py

from camshaft import __version__

project = "Camshaft"
author = "The Camshaft developers"
copyright = author  # noqa: A001 - Sphinx's name
version = release = __version__

root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "benchmarks/RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md"]
# Sphinx looks into folders before it looks at the patterns above: environments, runs and links are many files.
exclude_patterns = [
    ".*",
    "build",
    "camshaft",
    "contrib",
    "data",
    "dist",
    "docs/_static",
    "docs/_templates",
    "engine",
    "examples",
    "handlers",
    "runs",
    "tests",
]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "site_extension"]
nitpicky = True

# Markdown and notebooks; these are executed by the tests, and shown with the outputs that they are kept with.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

# The reference.
autosummary_generate = False  # the entries stand on few pages
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
add_module_names = False
napoleon_attr_annotations = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
html_theme = "furo"
html_title = "Camshaft"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "index.html"}  # sends on to docs/index.html
templates_path = ["_templates"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
