# SPDX-License-Identifier: MIT
"""Every ```python block of the README and of docs/ runs as it stands.

A block is a program of its own: what it needs, it opens. Links between pages
lead somewhere, and the page made from the header is the header's.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            found.append((f"{page.relative_to(ROOT)}:{line}", match[1]))
    return found


def run(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )


def test_there_are_snippets() -> None:
    assert len(blocks()) >= 3


@pytest.mark.parametrize(("place", "source"), blocks(), ids=[place for place, _ in blocks()])
def test_snippet(place: str, source: str) -> None:
    done = run(source)
    assert done.returncode == 0, f"{place}\n{done.stderr}"
    assert done.stderr == ""


def test_a_broken_snippet_would_be_noticed() -> None:
    assert run("import dmaplane; dmaplane.teapot()").returncode != 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_page_of_the_contract_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/uapi_docs.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
