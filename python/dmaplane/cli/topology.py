# SPDX-License-Identifier: MIT
"""`dmaplane topology`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree

    from dmaplane import Topology

EPILOG = """\
Example: the node that the first GPU hangs on, to allocate its host buffers there:

  dmaplane topology --json | jq '.gpus[0].node'

Exit codes: 0 shown; 1 no plane could be opened; 2 wrong usage.
"""


def command(
    plane: Annotated[str, typer.Option(help="auto, kernel or embedded.", metavar="PLANE")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """NUMA nodes, and the NICs and GPUs on each.

    A node with its memory, huge pages, CPUs and distances.
    """
    import dmaplane
    from dmaplane.cli import _output

    with dmaplane.open(plane=plane_name(plane)) as opened:
        topology = opened.topology()
        answer = {"plane": opened.name, **dataclasses.asdict(topology)}
        huge_page_bytes = opened.limits.huge_page_bytes
    if as_json:
        _output.emit(answer)
        return
    out = _output.console()
    out.print(_tree(topology, f"machine, by the {answer['plane']} plane", huge_page_bytes))
    if len(topology.nodes) > 1:
        out.print(_distances(topology))


def plane_name(name: str) -> Literal["auto", "kernel", "embedded"]:
    """What --plane says; a usage error if that is no plane."""
    if name not in ("auto", "kernel", "embedded"):
        raise typer.BadParameter(
            f"{name!r} is no plane; there are auto, kernel and embedded", param_hint="--plane"
        )
    return name  # type: ignore[return-value]


def _tree(topology: Topology, title: str, huge_page_bytes: int) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    from dmaplane.cli._output import gibibytes

    root = Tree(Text(title))
    branches = {}
    for node in topology.nodes:
        branch = root.add(Text(f"node {node.node}"))
        branches[node.node] = branch
        memory, free = gibibytes(node.memory_bytes), gibibytes(node.memory_free_bytes)
        branch.add(Text(f"memory      {memory}, {free} free"))
        pages = f"{node.huge_pages_free} of {node.huge_pages} free"
        if huge_page_bytes:
            pages += f", {gibibytes(huge_page_bytes)} each"
        branch.add(Text(f"huge pages  {pages}"))
        branch.add(Text(f"CPUs        {_ranges(node.cpus)}"))
    for kind, devices in (("NIC", topology.nics), ("GPU", topology.gpus)):
        for device in devices:
            text = f"{kind}         {device.name}  {device.pci_address or 'not on PCI'}"
            if device.node in branches:
                branches[device.node].add(Text(text))
            else:
                root.add(Text(f"{text}  node unknown"))
    if not topology.nics:
        root.add(Text("no RDMA NIC"))
    if not topology.gpus:
        root.add(Text("no GPU"))
    return root


def _distances(topology: Topology) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title="distance as firmware states it", box=box.SIMPLE, title_justify="left")
    table.add_column("from \\ to", justify="right")
    for node in topology.nodes:
        table.add_column(str(node.node), justify="right")
    for node in topology.nodes:
        row = [
            str(node.distances[other.node]) if other.node < len(node.distances) else "-"
            for other in topology.nodes
        ]
        table.add_row(str(node.node), *row)
    return table


def _ranges(cpus: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) as '0-2,5'."""
    parts: list[str] = []
    start = end = -2
    for cpu in (*cpus, -1):
        if cpu == end + 1:
            end = cpu
            continue
        if start >= 0:
            parts.append(str(start) if start == end else f"{start}-{end}")
        start = end = cpu
    return ",".join(parts) or "none"
