# SPDX-License-Identifier: MIT
"""`dmaplane stream`: which way copies between host and device take, and why."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dmaplane.stream import Direction, Profile

COUNT_MAX: Final = 1 << 24
SIZE_MAX: Final = 1 << 40

_EPILOG: Final = """\
Example: the table of a simulated device, then one call of it:

  dmaplane stream explain --device sim

  dmaplane stream explain --device sim --count 4096 --size 16K --extent

Exit codes: 0 there is a choice; 1 no such device, or no way for that call; 2 wrong usage.
"""

app = typer.Typer(
    name="stream",
    help="Copies between host and device: what each way costs here.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _group() -> None:
    """Copies between host and device: what each way costs here."""


@app.command("explain", epilog=_EPILOG)
def explain(
    device: Annotated[
        str, typer.Option(help="auto (a GPU), cuda, cuda:1, ... or sim, the simulation.")
    ] = "auto",
    count: Annotated[
        int | None, typer.Option(help="Blocks of one call.", min=1, max=COUNT_MAX)
    ] = None,
    size: Annotated[str | None, typer.Option(help="Bytes of a block, as 4096, 16K or 1M.")] = None,
    direction: Annotated[
        str | None, typer.Option(help="h2d (to the device) or d2h; both if left out.")
    ] = None,
    extent: Annotated[
        bool, typer.Option("--extent", help="The host's side is in one piece.")
    ] = False,
    busy: Annotated[
        bool, typer.Option("--busy", help="The device's processors have other work.")
    ] = False,
    nic: Annotated[
        str | None,
        typer.Option(help="Add the way through this RDMA device, or auto: the nearest."),
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Measure again, whatever is kept.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print which way copies take, and why.

    Without --count and --size: the fastest way for each number and size of blocks, and its rate.
    With them: every way, its cost, and why it is taken or not. The profile is measured on first
    use, in two seconds, and kept in the cache folder.
    """
    from dmaplane.cli import _output, _stream_tables
    from dmaplane.stream import Choice, Profile, open_device

    block_bytes = _block_bytes(count, size)
    ways = _directions(direction)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_device(device))
        if nic is not None:
            from dmaplane.stream.nic import with_network

            opened = stack.enter_context(with_network(opened, nic))
        profile = Profile.of(opened, refresh=refresh, progress=stack.enter_context(_progress()))
    choice = Choice(profile)
    if count is None or block_bytes is None:
        answer = _stream_tables.choices(choice, ways, extent=extent, busy=busy)
        if as_json:
            _output.emit({**_head(profile), "extent": extent, "busy": busy, "choices": answer})
        else:
            _stream_tables.show_table(profile, answer, ways)
        return
    calls = {
        way: choice.estimate(count, block_bytes, way, busy=busy, extent=extent) for way in ways
    }
    if as_json:
        call = {"count": count, "block_bytes": block_bytes, "extent": extent, "busy": busy}
        estimates = [
            {"direction": way, **dataclasses.asdict(one)}
            for way, found in calls.items()
            for one in found
        ]
        _output.emit({**_head(profile), "call": call, "estimates": estimates})
    else:
        _stream_tables.show_call(profile, calls, count=count, block_bytes=block_bytes)
    if not all(found[0].allowed for found in calls.values()):
        raise typer.Exit(1)


def _block_bytes(count: int | None, size: str | None) -> int | None:
    from dmaplane.cli import _output

    if (count is None) != (size is None):
        raise typer.BadParameter("both or neither", param_hint="--count, --size")
    if size is None:
        return None
    try:
        block_bytes = _output.parse_size(size)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--size") from None
    if block_bytes > SIZE_MAX:
        raise typer.BadParameter(f"{size} is more than 1T", param_hint="--size")
    return block_bytes


def _directions(direction: str | None) -> tuple[Direction, ...]:
    from dmaplane.stream import Direction

    known: tuple[Direction, ...] = get_args(Direction)
    if direction is not None and direction not in known:
        raise typer.BadParameter(f"{direction!r} is none of h2d, d2h", param_hint="--direction")
    return tuple(way for way in known if direction in (None, way))


def _head(profile: Profile) -> dict[str, Any]:
    return {
        "device": profile.device,
        "identity": profile.identity,
        "origin": profile.origin,
        "measured_seconds": profile.seconds,
        "samples": profile.samples,
        "tiers": [dataclasses.asdict(tier) for tier in profile.tiers],
        "failed": [{"tier": tier, "reason": reason} for tier, reason in profile.failed],
    }


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[float], None]]:
    """A bar on stderr while it measures, and only where someone can watch."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from dmaplane.cli import _output

    console = _output.progress_console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: list[TaskID] = []

        def told(part: float) -> None:
            if not tasks:
                tasks.append(bars.add_task("measuring every way", total=1.0))
            bars.update(tasks[0], completed=part)

        yield told
