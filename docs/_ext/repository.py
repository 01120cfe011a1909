"""Pages of the repository that lie outside docs/, and the code blocks of all pages as doctests.

The repository's other Markdown files (README.md, CHANGELOG.md, ...) are copied to docs/repository
before Sphinx looks for pages, with their links made to fit. Links from docs/ to such a file lead to
its copy; those to any other file of the repository offer that file.
"""

import os
import re
import textwrap
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
COPIES = DOCS / "repository"
FOUND = (ROOT.glob(pattern) for pattern in ("*.md", "csrc/README.md", "examples/**/README.md"))
PAGES = sorted(str(path.relative_to(ROOT)) for paths in FOUND for path in paths)
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)")


def place(path):
    """Where the site has a file of the repository; of a folder, the next README above."""
    while path.is_dir():
        readme = path / "README.md"
        path = readme if readme.exists() else path.parent
    name = str(path.relative_to(ROOT))
    return COPIES / name if name in PAGES else path


def fitted(text, page):
    """Text of a Markdown file with its links as they are from its place in docs/."""

    def link(match):
        target = place(Path(os.path.normpath(page.parent / match[2])))
        return match[1] + os.path.relpath(target, place(page).parent)

    return LINK.sub(link, text)


def copy_pages(app):
    for name in PAGES:
        copy = COPIES / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = fitted((ROOT / name).read_text(), ROOT / name)
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)


def fit_links(app, docname, source):
    page = DOCS / f"{docname}.md"
    if page.exists() and COPIES not in page.parents:
        source[0] = fitted(source[0], page)


def mark_doctests(app, tree):
    """Blocks `pycon` are doctests; blocks `python` are run, whatever they print.

    But for the READMEs of folders, whose code needs what is not there.
    """
    if re.match("repository/.*/", app.env.docname):
        return
    for block in tree.findall(nodes.literal_block):
        if block.get("language") == "pycon":
            block["testnodetype"] = "doctest"
        elif block.get("language") == "python":
            block["testnodetype"] = "testcode"
            block["test"] = (
                "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n"
            )
            block["test"] += textwrap.indent(block.astext(), "    ")
        else:
            continue
        block["groups"], block["options"] = ["default"], {}


def setup(app):
    app.connect("builder-inited", copy_pages)
    app.connect("source-read", fit_links)
    app.connect("doctree-read", mark_doctests)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
