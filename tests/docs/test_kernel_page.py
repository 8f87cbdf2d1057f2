# SPDX-License-Identifier: MIT
"""docs/kernel.md names what the module has: parameters, events, files, capabilities."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/kernel.md").read_text(encoding="utf-8")


def sources(pattern: str) -> set[str]:
    """What @pattern finds in the sources of the module."""
    found: set[str] = set()
    for path in sorted((ROOT / "kernel").glob("*.[ch]")):
        found.update(re.findall(pattern, path.read_text(encoding="utf-8")))
    return found


def table(heading: str) -> str:
    """The tables under a heading of any depth, up to the next one."""
    parts = re.split(r"^#+ (.+)$", PAGE, flags=re.MULTILINE)
    text = dict(zip(parts[1::2], parts[2::2], strict=True))[heading]
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


def first_column(heading: str) -> set[str]:
    cells = [row.split("|")[1] for row in table(heading).splitlines()[2:]]
    return set(re.findall(r"`(\w+)`", " ".join(cells)))


def test_every_event_is_in_the_table() -> None:
    events = sources(r"\bTRACE_EVENT\((\w+),") | sources(r"\bDEFINE_EVENT\(\w+, (\w+),")
    assert len(events) > 20
    assert first_column("Tracepoints") == events


def test_every_event_has_somebody_who_tells_it() -> None:
    told = sources(r"\btrace_(dmp_\w+?)(?:_enabled)?\(")
    assert first_column("Tracepoints") <= told


def test_every_parameter_is_in_the_table() -> None:
    parameters = sources(r"\bmodule_param(?:_named|_cb|)\((\w+),")
    assert "bytes_max" in parameters
    assert first_column("Parameters") == parameters


def test_the_defaults_of_numbers_are_those_of_the_source() -> None:
    module = (ROOT / "kernel/module.c").read_text(encoding="utf-8")
    variables = dict(re.findall(r"module_param_named\((\w+), (\w+), uint,", module))
    assert len(variables) >= 2
    rows = [[cell.strip() for cell in row.split("|")] for row in table("Parameters").splitlines()]
    shown = {row[1].strip("`"): row[2] for row in rows[2:]}
    for name, variable in variables.items():
        (default,) = re.findall(rf"^uint {variable} = (\d+);", module, re.MULTILINE)
        assert shown[name] == default


def test_every_file_of_debugfs_is_in_the_table() -> None:
    files = sources(r'\bdebugfs_create_file\("(\w+)"')
    assert len(files) == 4
    assert first_column("debugfs") == files


def test_every_capability_that_is_claimed_is_explained() -> None:
    claimed = set(re.findall(r"DMP_CAP_(\w+)", (ROOT / "kernel/command.c").read_text()))
    assert len(claimed) > 10
    cells = [row.split("|")[1] for row in table("What each capability means here").splitlines()]
    explained = set(re.findall(r"\b[A-Z_]{4,}\b", " ".join(cells)))
    assert claimed == explained
