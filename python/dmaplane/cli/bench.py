# SPDX-License-Identifier: MIT
"""`dmaplane bench`."""

from __future__ import annotations

import pathlib
import textwrap
from typing import Annotated

import typer

EPILOG = """\
Example: does this node copy as fast as memcpy? Exit 1 if a claim does not hold:

  dmaplane bench copy --quick --check --json > copy.json

Exit codes: 0 measured; 1 with --check: a claim does not hold; 2 wrong usage.
"""


def command(
    name: Annotated[str, typer.Argument(help="The question to measure; 'list' names them.")],
    plane: Annotated[str, typer.Option(help="auto, kernel or embedded.")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples; below 20 s.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if a claim fails.")] = False,
    address: Annotated[
        str | None, typer.Option(help="rdma, stream, registration: of the RDMA device.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="stream: so long at each window size.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="stream-tiers: auto, cuda, cuda:1 or sim.")
    ] = None,
    plot: Annotated[
        pathlib.Path | None, typer.Option(help="stream-tiers: draw the block sizes, a PNG.")
    ] = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Write the JSON to this file too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measures this machine, next to a plain peer in the same run."""
    import functools

    from dmaplane import bench
    from dmaplane.bench import _result
    from dmaplane.cli import _output
    from dmaplane.cli.topology import plane_name

    if name == "list":
        _list(bench.QUESTIONS, as_json)
        return
    if name not in bench.NAMES:
        raise typer.BadParameter(
            f"no bench is called {name!r}; there are {', '.join(bench.NAMES)}", param_hint="NAME"
        )
    for path, hint in ((out, "--out"), (plot, "--plot")):
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}", param_hint=hint)
    answer = bench.run(
        name,
        plane=plane_name(plane),
        quick=quick,
        address=address,
        seconds=seconds,
        device=device,
        plot=None if plot is None else str(plot),
        saved=None if out is None else functools.partial(_result.save, out),
    )
    if out is not None:
        _result.save(out, answer)
    if as_json:
        _output.emit(dict(answer))
    else:
        from dmaplane.bench import _table

        _table.show(answer, _output.console())
    if check and not bench.all_hold(answer):
        raise typer.Exit(1)


def _list(questions: dict[str, str], as_json: bool) -> None:
    from dmaplane.cli import _output

    if as_json:
        _output.emit({"benches": questions})
        return
    for name, question in questions.items():
        print(textwrap.fill(f"{name:12} {question}", 80, subsequent_indent=" " * 13))
