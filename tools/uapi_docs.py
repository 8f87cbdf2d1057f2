#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""docs/uapi.md from the comments of the contract header.

The header is the one place where a command is described; this turns its comments,
constants and structs into a page, in the header's own order. Offsets are those of
tools/abi.py, which are asserted against the compiler.

  tools/uapi_docs.py           write docs/uapi.md
  tools/uapi_docs.py --check   exit 1 if it differs from what would be written
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import abi

PAGE = abi.ROOT / "docs/uapi.md"
WIDTH = 100

_ITEM = re.compile(
    r"^/\*\*?(?P<comment>.*?)\*/"
    r"|^#define[ \t]+(?P<name>DMP_\w+)[ \t]+(?P<value>[^\n]*?)[ \t]*(?:/\*(?P<note>.*?)\*/)?[ \t]*$"
    r"|^struct[ \t]+dmp_(?P<struct>\w+)[ \t]*\{",
    re.MULTILINE | re.DOTALL,
)


def stripped(comment: str) -> list[str]:
    """The lines of a comment without its frame, common indentation removed."""
    lines = [re.sub(r"^[ \t]*\*[ ]?", "", line).rstrip() for line in comment.splitlines()]
    return textwrap.dedent("\n".join(lines)).strip("\n").splitlines()


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    found: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            found.append(line.expandtabs())
        elif found:
            yield found
            found = []


def prose(lines: list[str]) -> Iterator[str]:
    """Markdown of a comment: lists stay lists, what is aligned in columns stays as it is."""
    for paragraph in paragraphs(lines):
        text = textwrap.dedent("\n".join(paragraph)).splitlines()
        if any(re.search(r"\S {3,}\S", line) for line in text):
            yield from ["```text", *text, "```", ""]
        elif text[0].startswith("- "):
            items = re.split(r"\n(?=- )", "\n".join(text))
            for item in items:
                yield from wrapped(" ".join(item.split()), "  ")
            yield ""
        else:
            yield from [*wrapped(" ".join(" ".join(text).split()), ""), ""]


def wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        escaped(text), WIDTH, subsequent_indent=indent, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def escaped(text: str) -> str:
    """Names as code, so that markdown takes no underscore or asterisk for itself."""
    return re.sub(r"(?<![`\w])(@?\w*_\w+\*?|@\w+|\w+\(\d?\))(?![`\w])", code, text)


def code(match: re.Match[str]) -> str:
    return f"`{match[0].lstrip('@')}`"


def cell(text: str) -> str:
    return escaped(" ".join(text.split())).replace("|", "\\|")


def struct_page(struct: abi.Struct, comment: list[str]) -> Iterator[str]:
    """A heading, a table of fields, and what the comment says after them."""
    meanings: dict[str, str] = {}
    rest: list[str] = []
    last = ""
    for line in comment[1:]:
        described = re.match(r"@(\w+):\s*(.*)", line)
        if described:
            last = described[1]
            meanings[last] = described[2]
        elif last and line[:1].isspace():
            meanings[last] += " " + line.strip()
        else:
            last = ""
            rest.append(line)
    yield from [f"### struct dmp_{struct.name}", "", *wrapped(struct.summary, ""), ""]
    yield from ["| offset | field | type | meaning |", "| ---: | --- | --- | --- |"]
    for field in struct.fields:
        kind = field.ctype + (f"[{field.length}]" if field.length else "")
        meaning = cell(meanings.get(field.name, "0" if field.name.startswith("__") else ""))
        yield f"| {field.offset} | `{field.name}` | `{kind}` | {meaning} |"
    yield from [f"| {struct.size_bytes} | | | end |", ""]
    yield from prose(rest)


def page(text: str) -> str:
    contract = abi.parse(text)
    structs = {struct.name: struct for struct in contract.structs}
    out = [
        "# The contract, command by command",
        "",
        "Generated from `include/uapi/dmaplane.h` by `tools/uapi_docs.py`; `make tidy` refuses a",
        "difference. Change the header, not this page.",
        "",
    ]
    comment: list[str] = []
    in_table = False
    body = text[text.index("*/") + 2 :]  # after the licence line
    for item in _ITEM.finditer(body):
        if item["comment"] is None and item["name"] is not None:
            if not in_table:
                out += section(comment)
                out += ["| constant | value | meaning |", "| --- | --- | --- |"]
                comment = []
                in_table = True
            out.append(constant_row(contract, item["name"], item["note"] or ""))
            continue
        if in_table:
            out.append("")
            in_table = False
        if item["struct"]:
            out += struct_page(structs[item["struct"]], comment)
            comment = []
        elif item["comment"] is not None:
            if comment:
                out += prose(comment)
            comment = stripped(item["comment"])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out).rstrip() + "\n")


def section(comment: list[str]) -> list[str]:
    """A section starts where a comment introduces constants; its first words are the title."""
    if not comment:
        return []
    if comment[0].startswith("dmaplane.h - "):
        return ["## Rules", "", *prose(comment[1:])]
    title, _, rest = re.sub(r"\.$", "", comment[0]).partition(":")
    alone = not rest and (len(comment) == 1 or not comment[1])
    text = comment[1:] if alone else comment
    return [f"## {escaped(title)}", "", *prose(text)]


def constant_row(contract: abi.Contract, name: str, note: str) -> str:
    value = contract.constants[name]
    if name in contract.commands:
        struct = abi.command_struct(name, {struct.name for struct in contract.structs})
        note = f"[struct dmp_{struct}](#struct-dmp_{struct})"
        return f"| `{name}` | {value:#06x} | {note} |"
    shown = hex(value) if name in contract.hexadecimal else str(value)
    return f"| `{name}` | {shown} | {cell(note)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args().check
    wanted = page(abi.HEADER.read_text(encoding="utf-8"))
    if check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
            print(f"{PAGE.relative_to(abi.ROOT)} is stale: run tools/uapi_docs.py", file=sys.stderr)
            return 1
        return 0
    Path(PAGE).write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
