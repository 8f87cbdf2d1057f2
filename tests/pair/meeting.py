# SPDX-License-Identifier: MIT
"""How two puppets of the two machines come to a connection."""

from __future__ import annotations

from typing import Any

from puppet import Puppet

MIB = 1 << 20
LENGTH = 3 * MIB
SECRET = "two machines, one secret"
DETECT_MS = 4000
"""A second is nothing on an emulated machine that shares two processors with another."""

WINDOW = {"window_slots": 64, "window_bytes": MIB, "detect_ms": DETECT_MS}


def listen(far: Puppet, *, port: int = 0, length_bytes: int = LENGTH, **settings: Any) -> Any:
    """@far listens; what it says of where, and who it is."""
    every = {"length_bytes": length_bytes, "fill": 3, "fields": WINDOW, **settings}
    return far.live("serve", address=f"{far.node.address.ip}:{port}", secret=SECRET, **every)


def reach(near: Puppet, far: Puppet, bound: str, *, path: str | None = "tcp") -> dict[str, Any]:
    """@near, which lives, connects to @far by @path (None: any) and takes its region."""
    made: dict[str, Any] = near.do("connect", address=bound, secret=SECRET, path=path, **WINDOW)
    assert made["answer"] == 0, made
    near.do("take", key=far.hear()["key"])
    return made


def meet(
    near: Puppet, far: Puppet, *, length_bytes: int = LENGTH, path: str | None = "tcp"
) -> dict[str, Any]:
    """Both are born and connected; what the connection is, and `bound`, where @far listens."""
    said = listen(far, length_bytes=length_bytes)
    near.live("call", length_bytes=length_bytes)
    made = reach(near, far, said["bound"], path=path)
    assert made["incarnation"] == said["incarnation"]
    return {**made, "bound": said["bound"]}
