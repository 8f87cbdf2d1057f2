# SPDX-License-Identifier: MIT
"""The ledger of an endpoint: what it may send, what it granted, how often it had to wait."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from dmaplane._plane import PATHS, Path
from dmaplane._region import State, state_of
from dmaplane._topology import text_of

if TYPE_CHECKING:
    from dmaplane import _abi


@dataclasses.dataclass(frozen=True, slots=True)
class Ledger:
    """Credit and state of an endpoint. str() of it is for people."""

    state: State
    path: Path
    epoch: int
    peer_address: str
    peer_incarnation: int
    send_slots: int
    """Messages and immediates that may be sent now."""
    send_slots_in_flight: int
    send_bytes: int
    """Bytes of these that may be sent now."""
    send_bytes_in_flight: int
    granted_slots: int
    """To the peer, so far in all."""
    granted_bytes: int
    """To the peer, so far in all."""
    stalls: int
    """Times an operation waited for credit."""
    stall_ns: int
    operations: int
    """In flight."""
    regions: int
    """Imported."""

    def __str__(self) -> str:
        return (
            f"{self.peer_address} by {self.path}, epoch {self.epoch}, {self.state}\n"
            f"  may send   {self.send_slots} slots, {self.send_bytes} bytes"
            f" (in flight {self.send_slots_in_flight}, {self.send_bytes_in_flight})\n"
            f"  granted    {self.granted_slots} slots, {self.granted_bytes} bytes so far\n"
            f"  stalled    {self.stalls} times, {self.stall_ns / 1e6:.3f} ms\n"
            f"  holds      {self.operations} operations, {self.regions} regions"
        )


_COPIED = tuple(
    field.name
    for field in dataclasses.fields(Ledger)
    if field.name not in ("state", "path", "peer_address")
)


def ledger_of(answer: _abi.EndpointQuery) -> Ledger:
    """What ENDPOINT_QUERY answered."""
    return Ledger(
        state=state_of(answer.state),
        path=PATHS[answer.path],
        peer_address=text_of(answer.peer_address),
        **{name: getattr(answer, name) for name in _COPIED},
    )
