#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""docs/benchmarks.md from bench/results/*.json.

tools/benchmarks.py           write it
tools/benchmarks.py --check   exit 1 if it differs from what would be written
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
BENCHES = ROOT / "python/dmaplane/bench"
PAGE = ROOT / "docs/benchmarks.md"
ORDER = (
    "copy",
    "ring",
    "alloc",
    "observe",
    "scale",
    "endpoint",
    "kv",
    "rdma",
    "stream",
    "registration",
    "stream-tiers",
)

HEAD = """\
<!-- Written by tools/benchmarks.py from bench/results/*.json; edit those, or the tool. -->
# Benchmarks

`make bench` measures all of this on your machine in about six minutes, four of them `endpoint`;
`dmaplane bench NAME --quick` answers one question in seconds, and `--check` exits 1 if a claim
does not hold.

## How it is measured

- Ours and its peer run in one process, over the same memory, timed by the same clock in the same
  C library, in interleaved pairs (A B, B A, A B, ...). Machines drift; the two halves of a
  pair drift together. **ratio** is the median of the pairwise ratios ours / peer, **spread** is
  (p90 - p10) / median of those ratios (of ours, where there is no peer).
- The endpoint bench has two processes, and peers that are programs of their own (libfabric, NIXL,
  Mooncake): all of them take turns over the same pages, which they are given by descriptor, and
  the clock is the machine's. A peer that is not installed leaves its claim unjudged, and says so.
- Memory is written before it is timed, one untimed round warms up, nothing is bound to a CPU, no
  priority is raised. The copy bench compares the bytes at the end.
- Absolute figures belong to the machine below and to that hour. Ratios travel better.
"""

TRUE_BY_CONSTRUCTION = """\
## What is true by construction

- A channel's worker copies with streaming stores when the target is larger than the last-level
  cache; the C library's memcpy, the peer, keeps to the caches up to a much larger size. So a ratio
  above 1 over 256 MiB is the price of a cache line fetched for nothing, not magic, and a copy
  that stays in the caches is memcpy on both sides.
- The start of the next block of a batch is fetched while the present one is copied. A loop of
  memcpy calls could do that too; it does not.
- NOPs measure the rings and the hand-over between two threads, nothing else.
- The kernel plane was measured in a machine that QEMU emulates instruction by instruction, on a CPU
  that others used too: compare its rows with each other, not with those above. What a system call
  and a switch between threads cost there is what a batch saves.
- RDMA ran over Soft-RoCE in that same machine: every packet is made and taken by one of two
  emulated processors. Look at the ratios, not at the figures.
- Peers that poll (libfabric, NIXL) lose more than we do when somebody else wants their CPU. Look at
  the load before you believe a ratio to them.
- memcpy between processes tells nobody. Ours tells the other side of every block and learns that
  it was told; that is what a ratio below 1 pays for.
- On one NUMA node nothing here says anything about placement. In a virtual machine wake-ups and
  page faults cost more than on bare metal, for both sides.
"""


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.0f} %"


def docstring(bench: str) -> str:
    """What the bench says of itself, so that the page and the code cannot disagree."""
    tree = ast.parse((BENCHES / f"{bench.replace('-', '_')}.py").read_text(encoding="utf-8"))
    said = ast.get_docstring(tree)
    if not said:
        raise SystemExit(f"{bench}.py does not say what it measures")
    return said


def machine_line(machine: dict[str, Any]) -> str:
    where = {True: "a virtual machine", False: "bare metal", None: "unknown if virtual"}
    memory = machine["memory_bytes"] / (1 << 30)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {memory:.0f} GiB, "
        f"{where[machine['virtual']]}, Linux {machine['kernel']}, {machine['plane']} plane, "
        f"load {machine['load']} at the end"
    )


def section(path: Path, *, first: bool) -> str:
    """@first: what is measured has not been said yet."""
    result = json.loads(path.read_text(encoding="utf-8"))
    plane, cpu = result["machine"]["plane"], result["machine"]["cpu"]
    other = f", {cpu}" if plane == "embedded" else f", {plane} plane"
    which = "" if path.stem == result["bench"] else other
    lines = [f"## {result['bench']}{which}", ""]
    if first:  # the docstrings hold small indented lists: those stay as they are
        lines += ["```text", docstring(result["bench"]), "```", ""]
    lines += [
        f"{machine_line(result['machine'])}. Version {result['version']}, {result['measured_at']}.",
        "",
        "| case | unit | ours | peer | | ratio | spread | pairs |",
        "|---|---|--:|---|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['case']} | {row['unit']} | {number(row['ours'])} | {row['peer_name'] or '-'} "
            f"| {number(row['peer'])} | {number(row['ratio'])} | {percent(row['spread'])} "
            f"| {row['samples']} |"
        )
    lines += ["", "| claim | measured | target | holds |", "|---|--:|--:|---|"]
    for claim in result["claims"]:
        holds = "yes" if claim["holds"] else "NO"
        lines.append(
            f"| {claim['name']} | {number(claim['measured'])} "
            f"| {claim['relation']} {number(claim['target'])} | {holds} |"
        )
    for skipped in result["skipped"]:
        lines.append(f"| {skipped['name']} | not shown: {skipped['reason']} | | |")
    return "\n".join(lines) + "\n"


def bench_of(stem: str) -> str:
    """Whose result a file of that name is: the longest name it begins with."""
    return max((each for each in ORDER if f"{stem}-".startswith(f"{each}-")), key=len)


def page() -> str:
    parts = [HEAD]
    for bench in ORDER:
        # NAME.json comes first; NAME-PLANE.json is another plane's, NAME-MACHINE.json another's.
        paths = [path for path in RESULTS.glob("*.json") if bench_of(path.stem) == bench]
        paths.sort(key=lambda path: (len(path.stem), path.stem))
        parts += [section(path, first=path is paths[0]) for path in paths]
    parts.append(TRUE_BY_CONSTRUCTION)
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    given = parser.parse_args()
    text = page()
    if given.check:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print(f"{PAGE.relative_to(ROOT)} differs from bench/results: run tools/benchmarks.py")
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
