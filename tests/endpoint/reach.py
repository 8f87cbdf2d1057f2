# SPDX-License-Identifier: MIT
"""The test's own end of a connection to a peer of nursery.py."""

from __future__ import annotations

from typing import Any

from nursery import Peer

import dmaplane
from dmaplane.testing import _pair
from dmaplane.testing._pair import DETECT_MS, Side
from dmaplane.testing._rig import Rings, expect

FIELDS = {**_pair.WINDOW, "detect_ms": DETECT_MS}


def ask(peer: Peer, what: str, **arguments: Any) -> Any:
    """Has a server do something, and waits until it is done."""
    peer.say({"do": what, **arguments})
    return peer.hear()


def reach(
    plane: dmaplane.Plane,
    rings: Rings,
    bound: str,
    path: str | None,
    *,
    secret: str = "",
    **fields: int,
) -> Side:
    """Connects to where a peer listens."""
    answer, made = _pair.try_connect(
        plane,
        rings.id,
        bound,
        path=path,  # type: ignore[arg-type]
        secret=secret.encode(),
        fields={**FIELDS, **fields},
    )
    expect(answer, 0)
    return Side(plane, rings, made)


def join(
    plane: dmaplane.Plane, rings: Rings, peer: Peer, path: str | None, **settings: Any
) -> tuple[Side, int, dict[str, Any]]:
    """Connects to a server that has just started; the region it grants, and what it said of it."""
    side = reach(plane, rings, peer.hear()["bound"], path, **settings)
    said = peer.hear()
    return side, grant(side, said), said


def grant(side: Side, said: dict[str, Any]) -> int:
    """Imports what a server granted."""
    answer, imported = side.try_import(bytes.fromhex(said["key"]))
    expect(answer, 0)
    region: int = imported.region_id
    return region
