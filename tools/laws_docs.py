#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The lists of conformance cases in docs/laws.md, and which plane each runs on.

Between "<!-- cases Ln -->" and "<!-- end -->" stands a table of that law's cases. A plane
runs a case if it claims what the case needs; what it claims is read from the C of its
QUERY, where each is either always claimed or only under a condition. So no list of what
passes is kept by hand: the tests of a plane (tests/contract, tests/kernel) fail where a
case breaks its law, and where one is skipped that stands here as run.

In the table of laws the last two columns are written, counts of those cases.

  tools/laws_docs.py           write them
  tools/laws_docs.py --check   exit 1 if they differ from what would be written
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))

from dmaplane import Capability, testing  # noqa: E402 (from this tree, installed or not)

if TYPE_CHECKING:
    from dmaplane.testing import Case

PAGE = ROOT / "docs/laws.md"
LAWS = tuple(f"L{number}" for number in range(1, 13))
QUERIES = {"embedded": "embedded/command.c", "kernel": "kernel/command.c"}
_LIST = re.compile(r"(<!-- cases (L\d+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ROW = re.compile(r"^(\| \[(L\d+)\]\(#l\d+\) \| [^|]* \|).*$", re.MULTILINE)
_QUERY = re.compile(r"^static int serve_query\(.*?^}", re.DOTALL | re.MULTILINE)
_CLAIM = re.compile(r"query->capabilities (\|?=) ([^;]*);")
_MACRO = re.compile(r"^#define (\w+)((?:.*\\\n)*.*)$", re.MULTILINE)


class Claims(NamedTuple):
    """What a plane claims."""

    always: Capability
    sometimes: Capability
    """On some machines: under a condition, or as well as `always`."""


def _named(text: str, macros: dict[str, str]) -> Capability:
    """The capabilities an expression names."""
    found = Capability(0)
    for word in re.findall(r"\w+", text):
        if word.startswith("DMP_CAP_"):
            found |= Capability[word.removeprefix("DMP_CAP_")]
        elif word in macros:
            found |= _named(macros[word], {})
    return found


def claims(plane: str) -> Claims:
    """What the source of @plane says it claims."""
    text = (ROOT / QUERIES[plane]).read_text(encoding="utf-8")
    macros = {match[1]: match[2] for match in _MACRO.finditer(text)}
    query = _QUERY.search(text)
    assert query is not None, f"{QUERIES[plane]} has no serve_query()"
    always = sometimes = Capability(0)
    for how, expression in _CLAIM.findall(query[0]):
        if how == "=":
            always |= _named(expression, macros)
        else:
            sometimes |= _named(expression, macros)
    assert always, f"{QUERIES[plane]} claims nothing"
    return Claims(always, always | sometimes)


def verdict(case: Case, plane: Claims) -> str:
    """Whether @plane runs @case, in a word or two."""
    if not case.missing(plane.always):
        return "runs"
    missing = case.missing(plane.sometimes)
    if not missing:
        return f"runs with {_names(case.missing(plane.always))}"
    return f"no {_names(missing)}"


def listed_as_run(case: Case, plane: str) -> bool:
    """Does the page say that @plane runs @case on every machine?"""
    return verdict(case, claims(plane)) == "runs"


def _names(capabilities: Capability) -> str:
    return ", ".join(one.name or "?" for one in Capability if one in capabilities)


def table(law: str, planes: dict[str, Claims]) -> str:
    """The cases of @law; nothing if there are none."""
    rows = []
    listed = [case for case in testing.cases() if case.law == law]
    for check, alike in itertools.groupby(listed, key=lambda case: case.check):
        over = list(alike)  # one for each fabric, or one
        said = (check.__doc__ or "").strip().split("\n\n")[0]
        text = ", ".join(f"`{case}`" for case in over)
        text += f": {' '.join(said.split())}" if said else ""
        verdicts = [verdict(over[0], planes[name]) for name in planes]
        rows.append(f"| {text} | {' | '.join(verdicts)} |\n")
    if not rows:
        return ""
    return f"\n| test | {' | '.join(planes)} |\n| --- | --- | --- |\n{''.join(rows)}\n"


def count(law: str, plane: Claims) -> str:
    """How many cases of @law a plane runs, where it can."""
    verdicts = [verdict(case, plane) for case in testing.cases() if case.law == law]
    run = sum(word.startswith("runs") for word in verdicts)
    return f"{run} of {len(verdicts)} cases" if verdicts else "see there"


def page(text: str) -> str:
    """The page with its tables written."""
    planes = {name: claims(name) for name in QUERIES}
    text = _LIST.sub(lambda match: f"{match[1]}{table(match[2], planes)}{match[3]}", text)
    return _ROW.sub(
        lambda match: (
            f"{match[1]} {' | '.join(count(match[2], plane) for plane in planes.values())} |"
        ),
        text,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    wanted = page(text)
    if check:
        if text != wanted:
            print(f"{PAGE.relative_to(ROOT)} is stale: run tools/laws_docs.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
