# SPDX-License-Identifier: MIT
"""`dmaplane bench`."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

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
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Write the JSON to this file too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measures this machine, next to a plain peer in the same run."""
    import json

    from dmaplane import bench
    from dmaplane.cli import _output
    from dmaplane.cli.topology import plane_name

    if name == "list":
        _list(bench.NAMES, as_json)
        return
    if name not in bench.NAMES:
        raise typer.BadParameter(
            f"no bench is called {name!r}; there are {', '.join(bench.NAMES)}", param_hint="NAME"
        )
    if out is not None and not out.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    answer = bench.run(name, plane=plane_name(plane), quick=quick)
    if out is not None:
        out.write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    if as_json:
        _output.emit(answer)
    else:
        _show(answer)
    if check and not all(claim["holds"] for claim in answer["claims"]):
        raise typer.Exit(1)


def _list(names: tuple[str, ...], as_json: bool) -> None:
    from dmaplane.cli import _output

    if as_json:
        _output.emit({"benches": list(names)})
    else:
        print("\n".join(names))


def _show(answer: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from dmaplane.cli import _output

    out = _output.console()
    rows = Table(title=f"bench {answer['bench']}", box=box.SIMPLE_HEAD, title_justify="left")
    rows.add_column("case", overflow="fold")
    for heading in ("unit", "ours", "peer", "ratio", "spread"):
        rows.add_column(heading, justify="right")
    for row in answer["rows"]:
        rows.add_row(
            Text(row["case"]),
            row["unit"],
            _number(row["ours"]),
            f"{_number(row['peer'])} {row['peer_name'] or ''}".strip(),
            _number(row["ratio"]),
            _number(row["spread"]),
        )
    out.print(rows)
    if not answer["claims"]:
        return
    claims = Table(title="claims", box=box.SIMPLE_HEAD, title_justify="left")
    claims.add_column("claim", overflow="fold")
    for heading in ("measured", "target", "holds"):
        claims.add_column(heading, justify="right")
    for claim in answer["claims"]:
        claims.add_row(
            Text(claim["name"]),
            _number(claim["measured"]),
            f"{claim['relation']} {_number(claim['target'])}",
            Text("yes", style="green") if claim["holds"] else Text("NO", style="bold red"),
        )
    out.print(claims)


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
