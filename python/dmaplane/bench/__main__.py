# SPDX-License-Identifier: MIT
"""`python -m dmaplane.bench NAME`: the benches without the command line's packages."""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys

from dmaplane import bench
from dmaplane._errors import DmaplaneError
from dmaplane.bench import _result


def main() -> int:
    """Exit status: 0 measured; 1 with --check: a claim fails; 2 wrong usage or not possible."""
    parser = argparse.ArgumentParser(prog="python -m dmaplane.bench", description=bench.__doc__)
    parser.add_argument("name", nargs="?", choices=bench.NAMES)
    parser.add_argument("--list", action="store_true", help="the benches and their questions")
    parser.add_argument("--plane", choices=("auto", "embedded", "kernel"), default="auto")
    parser.add_argument("--quick", action="store_true", help="fewer samples; below 20 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit 1 if a claim fails")
    parser.add_argument("--out", type=pathlib.Path, help="write the JSON to this file too")
    parser.add_argument("--address", help="rdma, stream: of the RDMA device; default the first")
    parser.add_argument("--seconds", type=float, help="stream: so long at each window size")
    parser.add_argument("--device", help='stream-tiers: "auto", "cuda", "cuda:1" or "sim"')
    parser.add_argument(
        "--plot", type=pathlib.Path, help="stream-tiers: a PNG of the block sizes to this file"
    )
    given = parser.parse_args()
    if given.list:
        for name, question in bench.QUESTIONS.items():
            print(f"{name:12} {question}")
        return 0
    if given.name is None:
        parser.error("say which bench, or --list")
    for path in (given.out, given.plot):
        if path is not None and not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent}")
    try:
        result = bench.run(
            given.name,
            plane=given.plane,
            quick=given.quick,
            address=given.address,
            seconds=given.seconds,
            device=given.device,
            plot=None if given.plot is None else str(given.plot),
            saved=None if given.out is None else functools.partial(_result.save, given.out),
        )
    except DmaplaneError as error:
        print(f"dmaplane.bench: {error}", file=sys.stderr)
        return 2
    if given.out is not None:
        _result.save(given.out, result)
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        from dmaplane.bench import _table

        _table.show(result)
    return 1 if given.check and not bench.all_hold(result) else 0


if __name__ == "__main__":
    sys.exit(main())
