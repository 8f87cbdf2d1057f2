# SPDX-License-Identifier: MIT
"""`dmaplane doctor`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.text import Text

    from dmaplane.doctor import Report, Result

EPILOG = """\
Example, in a node's start script, where RDMA and memlock have to be there:

  dmaplane doctor --require rdma --require memlock --json > doctor.json

Exit codes: 0 a plane works and all that was required is there; 1 not; 2 wrong usage.
"""

_COLOURS: Final = {"ok": "green", "warn": "yellow", "lack": "red"}
_NAME_COLUMNS: Final = 24


def command(
    require: Annotated[
        list[str] | None,
        typer.Option(help="Exit 1 if this check is a lack; may be repeated.", metavar="CHECK"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What this machine has and lacks; each lack with cause and fix.

    Everything is tried, not guessed: planes are opened and copy, memory is locked,
    pages are placed. Nothing is changed.
    """
    from dmaplane import doctor
    from dmaplane.cli import _output

    required = require or []
    names = [check.name for check in doctor.CHECKS]
    unknown = [name for name in required if name not in names]
    if unknown:
        raise typer.BadParameter(
            f"no check is called {unknown[0]!r}; there are {', '.join(names)}",
            param_hint="--require",
        )
    report = doctor.examine()
    if as_json:
        _output.emit(report.as_json())
    else:
        _show(report)
    if report.plane is None or any(report.result(name).verdict == "lack" for name in required):
        raise typer.Exit(1)


def _show(report: Report) -> None:
    from dmaplane.cli import _output

    out = _output.console()
    machine = report.machine
    title = (
        f"{machine['distribution']}, Linux {machine['kernel']}, {machine['cpus']} CPUs, "
        f"{_output.gibibytes(machine['memory_bytes'])}"
    )
    if machine["container"]:
        title += f", in {machine['container']}"
    out.print(title, markup=False)
    out.print()
    for result in report.checks:
        _show_result(out.print, result, out.width)
    counts = {
        verdict: sum(result.verdict == verdict for result in report.checks) for verdict in _COLOURS
    }
    out.print()
    plane = f"the {report.plane} plane" if report.plane else "NO plane"
    out.print(
        f"{plane} is used; " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in _COLOURS)
    )


def _show_result(show: Callable[[Text], None], result: Result, width: int) -> None:
    from rich.text import Text

    indent = 5 + _NAME_COLUMNS
    lines = textwrap.wrap(result.finding, max(20, width - indent)) or [""]
    head = Text(f"{result.verdict:<5}", style=_COLOURS[result.verdict])
    show(head + Text(f"{result.name:<{_NAME_COLUMNS}}{lines[0]}"))
    for line in lines[1:]:
        show(Text(" " * indent + line))
    for label, text in (("cause", result.cause), ("fix", result.fix)):
        if text:
            for line in _labelled(label, text, width):
                show(Text(line, style="dim" if label == "cause" else ""))


def _labelled(label: str, text: str, width: int) -> list[str]:
    """Wrapped below its label; a command keeps a backslash at each break, so it can be pasted."""
    start = f"     {label:<6} "
    is_command = label == "fix" and not text.endswith(".")
    text, hash_sign, remark = text.partition("  # ") if is_command else (text, "", "")
    room = max(20, width - len(start) - (2 if is_command else 0))
    parts = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False)
    if is_command:
        parts = [f"{part} \\" for part in parts[:-1]] + parts[-1:]
    if hash_sign:
        parts.insert(0, f"# {remark}:")
    return [
        (start if first else " " * len(start)) + part
        for first, part in zip([True] + [False] * len(parts), parts, strict=False)
    ]
