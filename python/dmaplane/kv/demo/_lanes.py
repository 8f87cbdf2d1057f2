# SPDX-License-Identifier: MIT
"""The timeline as lanes, which picture and terminal draw in their own ways.

A lane is bars of one request on one axis of time. Invariants: bars of a lane do not overlap, and
are in order; every moment is within [0, Lanes.end].
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmaplane.kv.demo._outcome import Done, Outcome

What = Literal["wait", "prefill", "transfer", "decode"]
NAMES: Final[dict[What, str]] = {
    "wait": "waits its turn",
    "prefill": "prefill computes a layer",
    "transfer": "the layer crosses",
    "decode": "decode computes a token",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """From one moment to another, in seconds."""

    what: What
    begin: float
    end: float


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """Bars beside each other; `name` is of the process."""

    name: str
    bars: tuple[Bar, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """One request: its three lanes."""

    title: str
    lanes: tuple[Lane, ...]


def groups(outcome: Outcome) -> tuple[Group, ...]:
    """One for each request, in the order they were sent."""
    return tuple(
        Group(f"request {number}", tuple(_lanes(one)))
        for number, one in enumerate(outcome.per_request, 1)
    )


def end(outcome: Outcome) -> float:
    """The last moment there is."""
    return max((one.decoded[-1] for one in outcome.per_request if one.decoded), default=1.0)


def _lanes(one: Done) -> Iterator[Lane]:
    moments = (one.announced, *one.computed)
    yield Lane(
        "prefill",
        (
            Bar("wait", one.sent, one.announced),
            *(Bar("prefill", a, b) for a, b in itertools.pairwise(moments)),
        ),
    )
    crossings = []
    free = 0.0
    for there, here in zip(one.computed, one.layers, strict=False):
        crossings.append(Bar("transfer", max(there, free), max(here, there, free)))
        free = max(here, there, free)
    yield Lane("transfer", tuple(crossings))
    begun = one.layers[0] if one.layers else one.announced
    steps = (begun, *one.decoded)
    yield Lane(
        "decode",
        tuple(Bar("decode", a, b) for a, b in itertools.pairwise(steps)),
    )
