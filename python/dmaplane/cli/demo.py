# SPDX-License-Identifier: MIT
"""`dmaplane demo`."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dmaplane.demo import Outcome

EPILOG = """\
Examples: the other engine; two machines, the first line there and the second
one here; a buffer's life instead:

  dmaplane demo --engine transformers

  dmaplane kv prefill --listen HOST:7471 --secret-file FILE

  dmaplane demo --peer HOST --secret-file FILE

  dmaplane demo --buffers --size 1G

Exit codes: 0 every check passed; 1 one did not, or no plane; 2 wrong usage.
"""


def command(
    peer: Annotated[
        str | None,
        typer.Option(help="HOST or HOST:PORT of a running 'dmaplane kv prefill'.", metavar="HOST"),
    ] = None,
    engine: Annotated[str, typer.Option(help="numpy or transformers.")] = "numpy",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the engine."),
    ] = None,
    requests: Annotated[int, typer.Option(help="Prompts, all at once.", min=1, max=64)] = 4,
    prompt_tokens: Annotated[
        int, typer.Option(help="In the longest prompt.", min=2, max=8192)
    ] = 512,
    max_tokens: Annotated[int, typer.Option(help="In each answer.", min=1, max=1024)] = 32,
    picture: Annotated[str, typer.Option(help="Where the timeline goes.")] = "kv-demo.png",
    require: Annotated[
        str | None, typer.Option(help="The only path bytes may take: shm, tcp or verbs.")
    ] = None,
    secret_file: Annotated[
        str | None, typer.Option(help="File with the secret; or the variable DMAPLANE_SECRET.")
    ] = None,
    buffers: Annotated[
        bool, typer.Option("--buffers", help="A buffer's life instead; with --node, --size.")
    ] = False,
    node: Annotated[
        int | None, typer.Option(help="NUMA node; by default the first with memory.", min=0, max=63)
    ] = None,
    size: Annotated[str, typer.Option(help="Bytes to move: 64M, 1G, ...")] = "256M",
    plane: Annotated[str, typer.Option(help="auto, kernel or embedded.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prefill and decode in two processes: the same tokens.

    Sends prompts to two servers, shows layers as they cross, compares the tokens with those of
    one process, and writes a timeline as PNG. Needs no root, module or hardware.
    """
    from dmaplane.cli import _output

    try:
        length_bytes = _output.parse_size(size)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--size") from None
    if buffers:
        _buffers(node, length_bytes, plane, as_json=as_json)
        return
    if node is not None or size != "256M":
        raise typer.BadParameter("it goes with --buffers", param_hint="--node, --size")
    from dmaplane.cli import _kv_tables, kv

    kv.require_package()
    from dmaplane.kv.demo import DemoSettings, run

    blocks = requests * -(-(prompt_tokens + max_tokens) // 16)
    wanted = DemoSettings(
        site=kv.site_settings(engine, settings, blocks, None, None, plane),
        requests=requests,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        peer=peer if peer is None or ":" in peer else f"{peer}:{kv.PREFILL_PORT}",
        secret=kv.secret_of(secret_file),
        require=kv.path_of(require),
        picture=picture,
    )
    with _kv_tables.progress() as told:
        outcome = run(wanted, told)
    if as_json:
        _output.emit(outcome.as_json())
    else:
        _kv_tables.show(outcome)
    if not outcome.passed:
        raise typer.Exit(1)


def _buffers(node: int | None, length_bytes: int, plane: str, *, as_json: bool) -> None:
    """`dmaplane demo --buffers`."""
    from dmaplane import demo
    from dmaplane.cli import _output
    from dmaplane.cli.topology import plane_name

    with _progress() as progress:
        outcome = demo.run(
            plane=plane_name(plane), node=node, length_bytes=length_bytes, progress=progress
        )
    if as_json:
        _output.emit({**dataclasses.asdict(outcome), "passed": outcome.passed})
    else:
        _show(outcome)
    if not outcome.passed:
        raise typer.Exit(1)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr, and only where someone can watch it."""
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

    from dmaplane.cli import _output

    console = _output.progress_console()
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def told(stage: str, part: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=1.0)
            bar.update(tasks[stage], completed=part)

        yield told


def _show(outcome: Outcome) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from dmaplane.cli import _output

    out = _output.console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what was done")
    for step in outcome.checks:
        verdict: Any = Text("ok", "green") if step.passed else Text("FAILED", "bold red")
        table.add_row(step.name, verdict, Text(step.detail))
    out.print(f"{outcome.plane} plane: {outcome.reason}", markup=False)
    out.print(table)
    out.print(
        f"{_output.gibibytes(outcome.bytes)} through the channel with CRC32C: "
        f"{outcome.gb_per_s:.1f} GB/s; plain memcpy beside it: "
        f"{outcome.memcpy_gb_per_s:.1f} GB/s",
        markup=False,
    )
    failed = [step.name for step in outcome.checks if not step.passed]
    out.print(f"FAILED: {', '.join(failed)}" if failed else "all checks passed", markup=False)
