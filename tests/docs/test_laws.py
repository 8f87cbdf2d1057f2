# SPDX-License-Identifier: MIT
"""docs/laws.md names every law and every case there is."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

from dmaplane import testing

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/laws.md").read_text(encoding="utf-8")


def test_every_law_has_a_section() -> None:
    assert re.findall(r"^## (L\d+)$", PAGE, re.MULTILINE) == [f"L{n}" for n in range(1, 13)]


def test_every_case_is_listed_under_its_law() -> None:
    sections = dict(
        zip(*[iter(re.split(r"^## (L\d+)$", PAGE, flags=re.MULTILINE)[1:])] * 2, strict=True)
    )
    for case in testing.cases():
        assert f"`{case}`" in sections[case.law], case


def test_the_lists_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/laws_docs.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
