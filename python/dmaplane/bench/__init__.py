# SPDX-License-Identifier: MIT
"""Benches: what this machine does, next to a plain peer in the same run.

from dmaplane import bench
result = bench.run("copy", quick=True)

One question a module; the format of an answer is in `_result`. Python says what to do
and does the arithmetic; the timed loops are C, the same clock for both sides.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Final

from dmaplane._errors import InvalidError
from dmaplane.bench import _result
from dmaplane.bench._result import CLAIMS, Result, all_hold

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CLAIMS", "NAMES", "QUESTIONS", "Result", "all_hold", "run"]

QUESTIONS: Final[dict[str, str]] = {
    "copy": "How fast are bytes copied through a channel, next to memcpy?",
    "ring": "What does one operation cost, from C and from Python?",
    "alloc": "How long to have memory, next to the bare system calls?",
    "observe": "What do counters and histograms cost?",
    "endpoint": "What do WRITE_IMMs to another process cost, by shared memory and by TCP?",
    "kv": "What does a KV cache cost on its way to another process, next to memcpy?",
    "rdma": "What does an RDMA device carry for endpoints, next to perftest?",
    "stream": "Does a stream under credits hold its rate, and at which depth is it full?",
    "registration": "How long until a peer may touch memory, and is that flat in regions?",
    "stream-tiers": "How fast do blocks cross between host memory and a device, by each tier?",
    "scale": "Does an operation cost the same with 10,000 buffers or 256 channels open?",
}
NAMES: Final[tuple[str, ...]] = tuple(QUESTIONS)

_PROGRESS_SECONDS: Final = 2.0


class _Reporter:
    """Says on stderr what is being measured, once a bench takes more than a moment."""

    def __init__(self, name: str, *, enabled: bool) -> None:
        self._name = name
        self._enabled = enabled
        self._begin = time.monotonic()
        self._status: object | None = None

    def __call__(self, what: str) -> None:
        if not self._enabled or time.monotonic() - self._begin < _PROGRESS_SECONDS:
            return
        from rich.console import Console
        from rich.status import Status

        if self._status is None:
            console = Console(stderr=True)
            if not console.is_terminal:
                console.print(f"bench {self._name}: {what}", highlight=False)
                return
            self._status = Status("", console=console)
            self._status.start()
        if isinstance(self._status, Status):
            self._status.update(f"bench {self._name}: {what}")

    def stop(self) -> None:
        if self._status is None:
            return  # and nothing is imported: this is run after an error, too
        from rich.status import Status

        if isinstance(self._status, Status):
            self._status.stop()


def run(
    name: str,
    plane: str = "auto",
    quick: bool = False,
    progress: bool = True,
    saved: Callable[[Result], None] | None = None,
    **options: object,
) -> Result:
    """Measures bench @name on @plane and gives the answer as a JSON-ready dictionary.

    @quick: fewer samples and less memory, below 20 s. @progress: what is going on, on stderr, if
    it takes longer than 2 s. @saved: given what there is so far, by a bench that takes minutes
    (`stream-tiers`). @options: of this bench alone (address: `rdma`, `registration`,
    `stream`; seconds: `stream`; device, plot: `stream-tiers`); None is as if it was not given.
    InvalidError for a name not in NAMES or an option the bench does not have; UnsupportedError
    says what is missing.
    """
    if name not in NAMES:
        raise InvalidError("name", f"{name!r} is no bench", fix=", ".join(NAMES))
    from dmaplane import __version__

    module = importlib.import_module(f"dmaplane.bench.{name.replace('-', '_')}")
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in getattr(module, "OPTIONS", ()):
            raise InvalidError(option, f"bench {name} has no option {option}")
    measure: Callable[..., _result.Measured] = module.measure
    report = _Reporter(name, enabled=progress)

    def answer(measured: _result.Measured) -> Result:
        result = Result(
            bench=name,
            version=__version__,
            commit=_result.commit(),
            measured_at=_result.now(),
            quick=quick,
            machine=_result.machine(measured.plane),
            rows=measured.rows,
            claims=measured.claims,
            skipped=measured.skipped,
        )
        if measured.notes:
            result["notes"] = measured.notes
        return result

    if saved is not None and "saved" in getattr(module, "OPTIONS", ()):
        given["saved"] = lambda measured: saved(answer(measured))
    try:
        measured = measure(plane, quick, report, **given)
    finally:
        report.stop()
    return answer(measured)
