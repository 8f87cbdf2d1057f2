#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The lists of conformance cases in docs/laws.md.

Between "<!-- cases Ln -->" and "<!-- end -->" stand the cases of that law, with the
first line of what each says about itself.

  tools/laws_docs.py           write them
  tools/laws_docs.py --check   exit 1 if they differ from what would be written
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/laws.md"
LAWS = tuple(f"L{number}" for number in range(1, 13))
_LIST = re.compile(r"(<!-- cases (L\d+) -->\n).*?(<!-- end -->)", re.DOTALL)


def cases_by_law() -> dict[str, list[str]]:
    """One line of markdown for each case."""
    sys.path.insert(0, str(ROOT / "python"))
    from dmaplane import testing

    found: dict[str, list[str]] = {law: [] for law in LAWS}
    for case in testing.cases():
        said = (case.check.__doc__ or "").strip().split("\n\n")[0]
        line = f"- `{case}`" + (f": {' '.join(said.split())}" if said else "")
        found[case.law].append(
            textwrap.fill(
                line, 100, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
            )
        )
    return found


def page(text: str) -> str:
    found = cases_by_law()

    def filled(match: re.Match[str]) -> str:
        lines = "".join(f"{line}\n" for line in found[match[2]])
        return f"{match[1]}\n{lines}\n{match[3]}" if lines else f"{match[1]}{match[3]}"

    return _LIST.sub(filled, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
