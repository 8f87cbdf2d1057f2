# SPDX-License-Identifier: MIT
"""docs/laws.md names every law and every case there is."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import dmaplane
from dmaplane import testing

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import laws_docs  # noqa: E402 (tools are no package)

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


def test_what_a_plane_claims_is_read_from_its_query() -> None:
    claimed = {name: laws_docs.claims(name) for name in ("embedded", "kernel")}
    with dmaplane.open(plane="embedded") as plane:
        assert claimed["embedded"].always & ~plane.capabilities == 0
        assert plane.capabilities & ~claimed["embedded"].sometimes == 0
    assert dmaplane.Capability.HUGE in claimed["embedded"].sometimes
    assert dmaplane.Capability.HUGE not in claimed["embedded"].always
    assert dmaplane.Capability.COHERENT in claimed["kernel"].always


def test_a_verdict_says_what_is_missing_and_where() -> None:
    huge, bind = dmaplane.Capability.HUGE, dmaplane.Capability.BIND
    case = next(one for one in testing.cases() if one.needs == (huge,))
    for always, sometimes, said in (
        (huge, huge, "runs"),
        (bind, bind | huge, "runs with HUGE"),
        (bind, bind, "no HUGE"),
    ):
        assert laws_docs.verdict(case, laws_docs.Claims(always, sometimes)) == said
