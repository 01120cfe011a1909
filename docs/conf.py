"""Settings of the site: `sphinx-build docs build/docs` in the repository's root."""

import doctest
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]  # smm_py as built in place

project = "smm_py"
author = "The smm_py authors"
release = re.search(r'#define SMM_VERSION "(.+)"', (ROOT / "csrc/include/smm.h").read_text()).group(
    1
)
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "numpydoc",
    "myst_nb",
    "c_header",  # _ext: the C reference, from smm.h
    "repository",  # _ext: the repository's other pages; code blocks as doctests
]
exclude_patterns = ["results", "repository/tests", "**.ipynb_checkpoints"]
highlight_language = "none"
default_role = "literal"  # `name` in docstrings
smartquotes = False  # μ' is no apostrophe
nitpicky = True
nitpick_ignore_regex = [
    ("c:identifier", r"u?int\d+_t|size_t"),
    ("py:class", r"torch\..*|nn\.Module|numpy\..*|collections\..*|optional|dataclass.*"),
    ("py:class", r"smm_py\.(torch\.)?_.*"),
]

# Notebooks are run by the tests, and shown here with the outputs that they hold.
nb_execution_mode = "off"
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

autodoc_typehints = "none"  # docstrings name the types
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
# Files that the pages write go to a folder of their own.
doctest_global_setup = """
import os, tempfile
folder, place = tempfile.TemporaryDirectory(), os.getcwd()
os.chdir(folder.name)
"""
doctest_global_cleanup = """
os.chdir(place)
folder.cleanup()
"""
doctest_default_flags = doctest.ELLIPSIS


html_theme = "pydata_sphinx_theme"
html_title = f"smm_py {release}"
html_sidebars = {"index": [], "math": []}  # pages without neighbours
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "footer_start": [],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "tango",
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
