"""Docstrings as Markdown: an extension of griffe that mkdocstrings loads.

The sources are wrapped at 88 columns and name arguments in running text ("config: an
instance of `Config`. n: number of nodes."). Markdown needs lists, code blocks and
escaped asterisks for the same text.
"""

import re
from typing import Any

import griffe

NAMES = r"[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*"
# at the beginning of a paragraph or sentence
ENTRY = re.compile(rf"(?:^|(?<=[.;]\s))({NAMES}): ")
COLUMNS = re.compile(r"^\S.*? {2,}\S")
# of a shape, such as (*batch, n)
ASTERISK = re.compile(r"(?<=[(\[ ])\*(?=\w)")
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
LABEL = re.compile(r"^(Shapes): ")
ERRORS = re.compile(r"(?<=[.)]) (?=Raises [A-Z])")


class Docstrings(griffe.Extension):
    """Rewrites all docstrings of a package when it has been loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        rewrite(pkg, set())


def rewrite(found: Any, done: set[str]) -> None:
    if found.is_alias or found.path in done:
        return
    done.add(found.path)
    if found.docstring is not None:
        found.docstring.value = as_markdown(found.docstring.value, names_of(found))
    for member in found.members.values():
        rewrite(member, done)


def names_of(found: Any) -> set[str]:
    """Names that a docstring describes: parameters, attributes, fields."""
    names = {"returns"}
    if found.is_function:
        names |= {parameter.name.lstrip("*") for parameter in found.parameters}
    elif found.is_class:
        for name, member in found.all_members.items():
            if member.is_attribute or "property" in getattr(member, "labels", ()):
                names.add(name)
        names |= {parameter.name.lstrip("*") for parameter in found.parameters}
    return names


def as_markdown(text: str, names: set[str]) -> str:
    """A docstring whose lists, equations and shapes Markdown shows as such."""
    parts, is_section = [], False
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.split("\n")
        if lines[0] == "Example:":
            parts.append(f"**Example**\n\n{example(lines[1:])}")
            continue
        if SECTION.match(lines[0]):
            is_section = True
        elif not lines[0].startswith(" "):
            is_section = False
        if is_section:
            parts.append(escaped(paragraph))
        elif lines[0].startswith(">>>"):
            parts.append(example(lines))
        elif lines[0].startswith("    "):
            parts.append(paragraph)
        elif lines[0] == "Shapes:":
            parts.append(shapes(lines[1:]))
        elif sum(bool(COLUMNS.match(line)) for line in lines) > 1:
            parts.append("\n".join(f"    {line}" for line in lines))
        else:
            whole = " ".join(line.strip() for line in lines)
            parts += [sentences(one, names) for one in ERRORS.split(whole)]
    return "\n\n".join(parts)


def shapes(rows: list[str]) -> str:
    """A list of the rows under "Shapes:"."""
    text = re.sub(r"\n {4}(?=\S)", "\n- ", "\n" + "\n".join(rows)).strip("\n")
    return f"**Shapes**\n\n{escaped(text)}"


def example(lines: list[str]) -> str:
    """Code without prompts, which can be copied."""
    code = [re.sub(r"^\s*(>>>|\.\.\.) ?", "", line) for line in lines]
    return "\n".join(["```python", *code, "```"])


def sentences(text: str, names: set[str]) -> str:
    """A paragraph; entries of known names become a list."""
    text = LABEL.sub(r"**\1**: ", text)
    starts = []
    for match in ENTRY.finditer(text):
        if set(match[1].split(", ")) <= names:
            starts.append(match)
    if not starts:
        return escaped(text)
    parts = []
    before = text[: starts[0].start()].strip()
    if before:
        parts.append(escaped(before) + "\n")
    ends = [*(match.start() for match in starts[1:]), len(text)]
    for match, end in zip(starts, ends, strict=True):
        own = ", ".join(f"`{name}`" for name in match[1].split(", "))
        parts.append(f"- {own}: {escaped(text[match.end() : end].strip())}")
    return "\n".join(parts)


def escaped(text: str) -> str:
    """Asterisks of shapes are no emphasis; code in backticks stays."""
    pieces = text.split("`")
    pieces[::2] = [ASTERISK.sub(r"\\*", piece) for piece in pieces[::2]]
    return "`".join(pieces)
