"""The directive `c-header`: the reference of a C header, from its comments and declarations.

What stands between two blank lines belongs together: a comment and the declarations that it is of.
A list macro (`#define ..._LIST(X)`) becomes a table; a struct or an enum that expands it names its
rows. The directive knows the style of smm.h, not C.
"""

import re
from itertools import groupby
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

COMMENT = r"/\*(?:[^*]|\*(?!/))*\*/"
LIST = r"#define (\w+)\(X\)((?:[^\n]*\\\n)*[^\n]*)"
EXPANSION = re.compile(r"#define SMM_X\(([^)]*)\)[^\n]*\n\s*(\w+)\(SMM_X\)\n#undef SMM_X\n")
PIECE = re.compile(
    rf"(?P<blank>\n\s*\n)|\s+|(?P<comment>{COMMENT})|(?P<list>{LIST})"
    r'|#define (?P<macro>SMM_\w+) [^\n]*|#[^\n]*|extern "C" \{|\}'
    r"|(?P<kind>(?:typedef )?(?:struct|enum)) \{(?P<body>[^}]*)\}\s*(?P<name>\w*);"
    r"|(?P<function>[^;#/]+);"
)
MEMBER = re.compile(rf"({COMMENT})?\s*([^/;,]*(?:[^/;]*;|,|$|(?=/)))[ \t]*({COMMENT})?\s*")
STRING = r'"(?:[^"\\]|\\.)*"'


class Header(SphinxDirective):
    """`.. c-header:: PATH`, relative to the page."""

    required_arguments = 1

    def run(self):
        path = Path(self.env.relfn2path(self.arguments[0])[1])
        self.env.note_dependency(path)
        self.env.note_dependency(__file__)
        reference = Reference(path.read_text())
        text = "\n".join(reference.lines())
        missing = [n for n in reference.roles if not re.search(rf"(?m)^ *[.c: ].*\b{n}\b", text)]
        if missing:
            raise self.error(f"{path}: what is {', '.join(missing)}?")
        found = self.parse_text_to_nodes(text)
        lists = (nodes.enumerated_list, nodes.definition_list, nodes.block_quote)
        for node in (n for top in found for kind in lists for n in top.findall(kind)):
            raise self.error(f"{path}: prose became a list or a quotation: {node.astext()}")
        return found


def rows_of(text):
    """The rows X(...) of a list macro, each a list of its arguments."""
    rows = re.findall(rf"X\(((?:{STRING}|[^()\"]|\([^()]*\))*)\)", text.replace("\\\n", " "))
    cells = (re.findall(rf"(?:{STRING}|[^\",])+", row) for row in rows)
    return [[re.sub(r'"\s*"', "", cell.strip()).strip('"') for cell in row] for row in cells]


def indented(lines, by="   "):
    return [by + line if line else "" for line in lines]


class Reference:
    """A header as reStructuredText."""

    def __init__(self, text):
        text = re.sub(r"(?m)^SMM_API ", "", text)
        self.lists = {name: rows_of(body) for name, body in re.findall(LIST, text)}
        self.columns = {name: args.split(", ") for args, name in EXPANSION.findall(text)}
        self.text = EXPANSION.sub(r"@\2;", text)
        self.roles = dict.fromkeys(re.findall(r"\b(smm_\w+)\(", self.text), "func")
        self.roles |= dict.fromkeys(re.findall(r"#define (SMM_\w+)\b[( ]", self.text), "macro")
        for piece in PIECE.finditer(self.text):
            if piece["body"]:
                kind, names = self.members(piece)
                self.roles[piece["name"]] = kind
                if kind == "enum":
                    self.roles |= {name: "enumerator" for name, _ in names}

    def lines(self):
        """All of it, group by group."""
        told, group = [], []
        for piece in [*PIECE.finditer(self.text), None]:
            if piece is None or piece["blank"]:
                if group:
                    yield from self.group(group, told)
                else:
                    yield from told
                told, group = [], []
            elif piece["comment"] and not group:
                told = self.prose(piece["comment"])
            elif piece["comment"]:  # after a function, on its line
                name = re.search(r"\w*(?=\(|$)", group[-1]["function"] or "")[0]
                told += [f"{self.marked(name)}:", *self.prose(piece["comment"])]
            elif piece.lastgroup:
                group.append(piece)

    def group(self, pieces, told):
        """Declarations under one comment, which the last of them gets."""
        functions = [" ".join(p["function"].split()) for p in pieces if p["function"]]
        for piece in pieces:
            if piece["macro"]:
                last = piece is pieces[-1]
                yield from [
                    f".. c:macro:: {piece['macro']}",
                    "",
                    *indented(told if last else []),
                    "",
                ]
            elif piece["list"]:
                name = re.match(LIST, piece["list"])[1]
                yield from [f".. c:macro:: {name}(X)", "", *indented(told), ""]
                yield from indented(self.table(name, " ".join(told)))
            elif piece["body"]:
                kind, members = self.members(piece)
                yield f".. c:{kind}:: {piece['name'] or '@parameters'}"
                yield from ([""] if piece["name"] else ["   :no-contents-entry:", ""])
                yield from indented(told)
                told = []
                inner = "member" if kind == "struct" else "enumerator"
                start = f"   .. c:{inner}:: "
                for text, some in groupby(members, lambda member: member[1]):
                    names = (" " * len(start)).join(f"{name}\n" for name, _ in some)
                    yield from [start + names + "      :no-contents-entry:", ""]
                    yield from [*indented(text, "      "), ""]
        if functions:
            start = ".. c:function:: "
            yield start + functions[0]
            yield from indented(functions[1:], " " * len(start))
            yield from ["", *indented(told), ""]

    def members(self, piece):
        """What a struct or an enum holds: pairs of a declaration and what is told of it."""
        found = []
        for before, what, after in MEMBER.findall(piece["body"]):
            what = " ".join(what.split()).rstrip(";,")
            text = self.prose(after or before)
            if what.startswith("@"):
                name = what[1:]
                for row in self.lists[name]:
                    told = dict(zip(self.columns[name], row))
                    found.append((f"{told.get('type', '')} {told['name']}".strip(), []))
            elif "," in what:  # of one type, which the first of them has
                first, *others = what.split(", ")
                kind = first.rsplit(" ", 1)[0]
                found += [(name, []) for name in [first, *(f"{kind} {name}" for name in others)]]
                found[-1] = (found[-1][0], text)
            elif what:
                found.append((what, text))
        return piece["kind"].split()[-1], found

    def table(self, name, told):
        """The rows of a list macro, under what its comment or its use calls the columns."""
        titles = re.search(r"X\(([\w, ]+)\)", told)
        titles = titles[1].split(", ") if titles else self.columns[name]
        rows = [
            [*(f"``{cell}``" for cell in row[:-1]), self.marked(row[-1])]
            for row in self.lists[name]
        ]
        order = sorted(range(len(titles)), key=lambda i: titles[i] not in ("name", "text"))
        yield from [".. list-table::", "   :header-rows: 1", ""]
        for row in [titles, *rows]:
            first, *others = (row[i] for i in order)
            yield from [f"   * - {first}", *(f"     - {cell}" for cell in others)]
        yield ""

    def marked(self, text):
        """A line of a comment, with links to what the header declares."""

        def link(match):
            if match[1] in self.roles:
                return f":c:{self.roles[match[1]]}:`{match[1]}`"
            if match[2]:
                return f"``{match[2]}``"
            return re.sub(r"([\\*`|_])", r"\\\1", match[0])

        text = re.sub(r"\b((?:smm|SMM)_\w+)\b(?:\(\))?|`(\w+)`|[\\*`|_]", link, text)
        text = re.sub(r"^\((?=\w\) )", r"\(", text)  # else a list, numbered (B)
        return " ".join(text.replace("docs/math.md", ":doc:`/math`").split())

    def prose(self, comment):
        """The lines of a comment: paragraphs, parameters (a name, two spaces), literal blocks."""
        text = re.sub(r"(?m)^ *\* ?| *\*/$|^/\* ?", "", comment)
        out = []
        for block in re.split(r"\n\s*\n", text.strip("\n")):
            lines = block.split("\n")
            if all(line.startswith("    ") for line in lines):
                out += ["::", "", *lines]
                lines = []
            for line in lines:
                if named := re.match(r"  (\w+)  +(.*)", line):
                    out += [""] * (not out or not out[-1].startswith((":param", "    ")))
                    out.append(f":param {named[1]}: {self.marked(named[2])}")
                else:
                    out.append("    " * line.startswith("  ") + self.marked(line))
            out.append("")
        return out


def setup(app):
    app.add_directive("c-header", Header)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
