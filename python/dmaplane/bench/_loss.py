# SPDX-License-Identifier: MIT
"""Part of `bench endpoint`: how soon a peer that was killed is known to be dead.

The other process is killed while writes of 1 MiB into it are under way. What is timed ends
when the last of them has completed: the ones that did not arrive with ECONNRESET.
"""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane._errors import DmaplaneError
from dmaplane.bench import _link, _result

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmaplane._buffer import Buffer
    from dmaplane._plane import Plane

BLOCK_BYTES: Final = 1 << 20
IN_FLIGHT: Final = 512
LIMIT_S: Final = 10.0


def _one_ms(plane: Plane, source: Buffer, path: _link.Path, kind: str, length_bytes: int) -> float:
    """Milliseconds from SIGKILL to the last completion. 0 if it was too late to interrupt."""
    with (
        _link.FarSide(plane.name, kind, length_bytes) as far,
        plane.channel(slots=IN_FLIGHT) as channel,
        contextlib.ExitStack() as stack,
    ):
        link = _link.Link(plane, far, path, channel, window=IN_FLIGHT)
        stack.callback(link.forget)
        link.connect()
        blocks = np.arange(IN_FLIGHT) % (length_bytes // BLOCK_BYTES)
        here = blocks % (source.length_bytes // BLOCK_BYTES)
        rows = _link.rows_over(
            link.endpoints[0], source.id, link.regions[0], BLOCK_BYTES, here, blocks
        )
        far.tell("drain", door=link.door, count=IN_FLIGHT, wait=1)
        far.hear()
        channel.push(rows)
        time.sleep(0.01)
        killed = far.kill()
        done = channel.completions(wait=IN_FLIGHT, timeout=LIMIT_S)
        elapsed_ms = (time.monotonic_ns() - killed) / 1e6
        failed = done["result"][done["result"] != 0]
        if (failed != -errno.ECONNRESET).any():
            raise DmaplaneError(f"a killed peer was reported as {set(failed.tolist())}")
        return elapsed_ms if len(failed) else 0.0


def measure(
    measured: _result.Measured,
    plane: Plane,
    kind: str,
    length_bytes: int,
    quick: bool,
    report: Callable[[str], None],
) -> None:
    """Both paths; the claims are about the slowest report."""
    samples = 3 if quick else 7
    with plane.buffer(64 << 20, kind=kind) as source:  # type: ignore[arg-type]
        for path in _link.PATHS:
            report(f"{path}, killing the other process")
            found = [_one_ms(plane, source, path, kind, length_bytes) for _ in range(samples)]
            interrupted = [milliseconds for milliseconds in found if milliseconds]
            name, case = f"endpoint/dead-{path}-ms", f"{path}, kill -9 to the last completion"
            if not interrupted:
                measured.skip(
                    _result.empty_row(case, "ms"), name, "every write had arrived before the kill"
                )
                continue
            row = _result.single_row(case, "ms", interrupted)
            measured.add(row, name, max(interrupted))
