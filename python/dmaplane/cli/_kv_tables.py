# SPDX-License-Identifier: MIT
"""The KV demo on a terminal: progress while it runs, then the timeline and the table."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from dmaplane.kv.demo import Lane, Outcome

_MARKS: Final = {"wait": "·", "prefill": "▒", "transfer": "█", "decode": "─"}
_COLOURS: Final = {"wait": "dim", "prefill": "blue", "transfer": "red", "decode": "green"}
_STAGES: Final = {"layer": "layers", "token": "tokens", "single": "one process"}


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int, int], None]]:
    """Bars on stderr, one for each request and stage, and only where someone can watch."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    from dmaplane.cli import _output

    console = _output.progress_console()
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[tuple[str, int], TaskID] = {}

        def told(stage: str, request: int, done: int, all_: int) -> None:
            if stage not in _STAGES:
                return
            key = (stage, request)
            if key not in tasks:
                tasks[key] = bars.add_task(f"request {request + 1}: {_STAGES[stage]}", total=all_)
            bars.update(tasks[key], completed=done)

        yield told


def show(outcome: Outcome) -> None:
    """Timeline, table and verdict."""
    from dmaplane.cli import _output

    out = _output.console()
    out.print(
        f"{outcome.plane} plane ({outcome.reason}), {outcome.engine} engine, path {outcome.path}",
        markup=False,
    )
    _timeline(out, outcome)
    _table(out, outcome)
    out.print(f"decoding copies: {outcome.copied or 'nothing'}", markup=False)
    out.print(f"timeline: {outcome.picture}", markup=False, soft_wrap=True)
    distinct = min(one.distinct for one in outcome.per_request)
    length = len(outcome.per_request[0].tokens)
    if outcome.tokens_identical:
        out.print(
            f"tokens identical to one process doing both: {outcome.requests} of "
            f"{outcome.requests} requests (at least {distinct} different of {length})"
        )
    else:
        wrong = [str(n) for n, one in enumerate(outcome.per_request, 1) if not one.identical]
        out.print(f"FAILED: tokens of request {', '.join(wrong)} differ from one process's")
    if outcome.control_differs:
        out.print("control: one zeroed block of the cache gives other tokens")
    else:
        out.print("FAILED: one zeroed block changes no token, so equal tokens prove nothing")
    for what in outcome.left_behind:
        out.print(f"FAILED: left behind: {what}", markup=False)
    if not outcome.left_behind:
        out.print("nothing left behind: no process, shared memory or socket")


def _timeline(out: Console, outcome: Outcome) -> None:
    from rich.text import Text

    from dmaplane.kv.demo import end, groups

    length = end(outcome)
    columns = max(20, out.width - 22)
    out.print()
    for group in groups(outcome):
        for number, lane in enumerate(group.lanes):
            line = Text(f"{group.title if number == 0 else '':<11}")
            line.append(f"{lane.name:<9} ", "dim")
            for mark, colour in _cells(lane, columns=columns, length=length):
                line.append(mark, colour)
            out.print(line, no_wrap=True)
    told = f"0 ms{f'{length * 1e3:.0f} ms':>{columns - 4}}"
    out.print(f"{'':<21}{told}", no_wrap=True, style="dim")
    legend = Text(" " * 21)
    for what, name in (("prefill", "computes"), ("transfer", "crosses"), ("decode", "decodes")):
        legend.append(f"{_MARKS[what]} ", _COLOURS[what])
        legend.append(f"{name}  ", "dim")
    out.print(legend)


def _cells(lane: Lane, *, columns: int, length: float) -> list[tuple[str, str]]:
    """A mark for each column; what is shorter than a column still gets one."""
    cells = [(" ", "")] * columns
    for number, bar in enumerate(lane.bars):
        first = min(columns - 1, int(bar.begin / length * columns))
        last = min(columns - 1, max(first, int(bar.end / length * columns - 1e-9)))
        for column in range(first, last + 1):
            cells[column] = (_MARKS[bar.what], _COLOURS[bar.what])
        if bar.what != "wait" and number + 1 < len(lane.bars) and last > first:
            cells[last] = ("│", _COLOURS[bar.what])  # layers and tokens can be told apart
    return cells


def _table(out: Console, outcome: Outcome) -> None:
    from rich import box
    from rich.table import Table

    table: Any = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True, collapse_padding=True, padding=(0, 1)
    )
    per = outcome.per_request
    rate = f"{outcome.gb_per_s:.2f}"
    columns = (
        ("", [str(n) for n in range(1, len(per) + 1)], "all"),
        ("MB", [f"{one.bytes / 1e6:.2f}" for one in per], f"{outcome.total('bytes') / 1e6:.2f}"),
        ("chunks", [str(one.chunks) for one in per], f"{outcome.total('chunks'):.0f}"),
        ("GB/s", [_rate(one.bytes, one.wire_seconds) for one in per], rate),
        ("stalls", [str(one.stalls) for one in per], f"{outcome.total('stalls'):.0f}"),
        *(
            (name, [_ms(getattr(one, field)) for one in per], _ms(outcome.total(field)))
            for name, field in (
                ("CRC", "checksum_seconds"),
                ("prefill", "prefill_seconds"),
                ("transfer", "wire_seconds"),
                ("behind", "tail_seconds"),
            )
        ),
        ("tokens", ["same" if one.identical else "DIFFER" for one in per], ""),
    )
    for name, _, footer in columns:
        table.add_column(name, footer=footer, justify="right", no_wrap=True)
    for row in zip(*(cells for _, cells, _ in columns), strict=True):
        table.add_row(*row)
    out.print(table)
    out.print(
        "CRC, prefill, transfer, behind: milliseconds. CRC: reading what landed. transfer: layers "
        "on their way, mostly while later ones are computed. behind: what is left of it when "
        "prefill has ended.",
        style="dim",
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _rate(length_bytes: float, seconds: float) -> str:
    return f"{length_bytes / seconds / 1e9:.2f}" if seconds else "-"
