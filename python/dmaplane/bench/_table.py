# SPDX-License-Identifier: MIT
"""A result for people: two tables that fit 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dmaplane.bench._result import Result


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def show(result: Result, console: Console | None = None) -> None:
    """Rows, claims, and what could not be shown here."""
    out = console if console is not None else Console(highlight=False)
    rows = Table(title=f"bench {result['bench']}", box=box.SIMPLE_HEAD, title_justify="left")
    rows.add_column("case", overflow="fold")
    for heading in ("unit", "ours", "peer", "ratio", "spread"):
        rows.add_column(heading, justify="right")
    for row in result["rows"]:
        rows.add_row(
            Text(row["case"]),
            row["unit"],
            number(row["ours"]),
            f"{number(row['peer'])} {row['peer_name'] or ''}".strip(),
            number(row["ratio"]),
            "-" if row["spread"] is None else f"{row['spread'] * 100:.0f} %",
        )
    out.print(rows)
    claims = Table(title="claims", box=box.SIMPLE_HEAD, title_justify="left")
    claims.add_column("claim", overflow="fold")
    for heading in ("measured", "target", "holds"):
        claims.add_column(heading, justify="right")
    for entry in result["claims"]:
        claims.add_row(
            Text(entry["name"]),
            number(entry["measured"]),
            f"{entry['relation']} {number(entry['target'])}",
            Text("yes", style="green") if entry["holds"] else Text("NO", style="bold red"),
        )
    if result["claims"]:
        out.print(claims)
    for skipped in result["skipped"]:
        out.print(Text(f"not shown here: {skipped['name']}: {skipped['reason']}"))
    machine = result["machine"]
    out.print(
        Text(
            f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
            f"{machine['plane']} plane, load {machine['load']}",
            style="dim",
        )
    )
