# SPDX-License-Identifier: MIT
"""What the demo found: each request with its tokens and times, and the sums of the table.

Invariants: moments are seconds since the demo sent its first request. A request passed if its
tokens are those of the single process, and only then.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """One request of the split run, next to the single process."""

    prompt_tokens: int
    tokens: tuple[int, ...]
    identical: bool
    sent: float
    announced: float
    computed: tuple[float, ...]
    """When the prefill server had each layer."""
    layers: tuple[float, ...]
    """When the decode server had each layer, checked."""
    complete: float
    decoded: tuple[float, ...]
    """When each token was there."""
    bytes: int
    chunks: int
    stalls: int
    checksum_seconds: float
    prefill_seconds: float
    path: str

    @property
    def wire_seconds(self) -> float:
        """On their way, over all layers: from being computed to being here and checked."""
        return sum(
            max(0.0, here - there) for here, there in zip(self.layers, self.computed, strict=False)
        )

    @property
    def tail_seconds(self) -> float:
        """What transfer adds to prefill: from the last layer's being computed to all being here."""
        return max(0.0, self.complete - self.computed[-1]) if self.computed else 0.0

    @property
    def distinct(self) -> int:
        """Different tokens among those of the answer."""
        return len(set(self.tokens))


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """All of it."""

    plane: str
    reason: str
    path: str
    engine: str
    copied: str
    """Which bytes of the cache the engine copies as it decodes, and why; "" if none."""
    per_request: tuple[Done, ...]
    control_differs: bool
    """One zeroed block gave the single process other tokens."""
    left_behind: tuple[str, ...]
    """What was there after the servers had ended, and should not have been."""
    picture: str
    """Where the timeline was written."""
    seconds: float

    @property
    def requests(self) -> int:
        """How many there were."""
        return len(self.per_request)

    @property
    def tokens_identical(self) -> bool:
        """All of them, every token."""
        return all(one.identical for one in self.per_request)

    @property
    def passed(self) -> bool:
        """Tokens, control, and nothing left behind."""
        return self.tokens_identical and self.control_differs and not self.left_behind

    def total(self, field: str) -> float:
        """The sum of a field of all requests."""
        return float(sum(getattr(one, field) for one in self.per_request))

    @property
    def gb_per_s(self) -> float:
        """Bytes by the time they were on their way, checksums included."""
        seconds = self.total("wire_seconds")
        return self.total("bytes") / seconds / 1e9 if seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """For `dmaplane demo --json`."""
        return {
            "requests": self.requests,
            "tokens_identical": self.tokens_identical,
            "path": self.path,
            "plane": self.plane,
            "bytes": int(self.total("bytes")),
            "gb_per_s": self.gb_per_s,
            "stalls": int(self.total("stalls")),
            "chunks": int(self.total("chunks")),
            "checksum_seconds": self.total("checksum_seconds"),
            "transfer_seconds": self.total("wire_seconds"),
            "tail_seconds": self.total("tail_seconds"),
            "prefill_seconds": self.total("prefill_seconds"),
            "control_differs": self.control_differs,
            "left_behind": list(self.left_behind),
            "engine": self.engine,
            "copied": self.copied,
            "reason": self.reason,
            "picture": self.picture,
            "seconds": self.seconds,
            "passed": self.passed,
            "per_request": [
                {
                    **dataclasses.asdict(one),
                    "distinct": one.distinct,
                    "transfer_seconds": one.wire_seconds,
                    "tail_seconds": one.tail_seconds,
                }
                for one in self.per_request
            ],
        }
