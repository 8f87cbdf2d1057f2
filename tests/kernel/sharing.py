# SPDX-License-Identifier: MIT
"""Buffers shared between planes, by raw calls: what tests of dma-bufs are built from."""

from __future__ import annotations

import errno
import mmap
import os
from typing import Any, Final

import numpy as np

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _rig

PAGE: Final = mmap.PAGESIZE
MIB: Final = 1 << 20
LENGTH: Final = 2 * MIB + 3 * PAGE
"""More than a large page, and not a multiple of one."""


def noise(length_bytes: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(length_bytes)


def export(plane: dmaplane.Plane, identity: int, flags: int = 0) -> int:
    return _rig.export_buffer(plane, identity, flags)


def try_export(plane: dmaplane.Plane, identity: int, flags: int = 0) -> int:
    request = _abi.BufferExport(buffer_id=identity, flags=flags)
    answer = _rig.ask(plane, _abi.BUFFER_EXPORT, request)
    if answer == 0:
        os.close(request.fd)
    return answer


def try_import(plane: dmaplane.Plane, fd: int, flags: int = 0) -> tuple[int, _abi.BufferImport]:
    request = _abi.BufferImport(fd=fd, flags=flags)
    return _rig.ask(plane, _abi.BUFFER_IMPORT, request), request


def imported(plane: dmaplane.Plane, fd: int, flags: int = 0) -> _abi.BufferImport:
    answer, made = try_import(plane, fd, flags)
    _rig.expect(answer, 0)
    return made


def destroy(plane: dmaplane.Plane, identity: int, drain_until: int | None = None) -> int:
    return _rig.destroy(plane, _abi.BUFFER_DESTROY, identity, drain_until=drain_until)


def copied(plane: dmaplane.Plane, source: int, target: int, length_bytes: int) -> int:
    """The result of one COPY."""
    with _rig.Rings(plane, slots=4) as rings:
        return _rig.results(rings.run(_rig.rows_of(_rig.copy_of(source, target, length_bytes))))[1]


def put(plane: dmaplane.Plane, made: Any, content: bytes) -> None:
    with _rig.Mapped(plane, made) as here:
        here.bytes[: len(content)] = np.frombuffer(content, np.uint8)


def content(plane: dmaplane.Plane, made: Any, protection: int = _rig.BOTH) -> bytes:
    with _rig.Mapped(plane, made, protection) as here:
        return here.bytes.tobytes()


def released(plane: dmaplane.Plane, identity: int) -> None:
    """Closing is not synchronous for who closes in another process, or maps: it is soon."""
    _rig.wait_until(
        lambda: _rig.query_buffer(plane, identity).exports == 0, _rig.SECOND, "exports end"
    )


def revoked(plane: dmaplane.Plane, rings: _rig.Rings, identity: int) -> None:
    """The event has come, the state says so, and only destroy is left."""
    found: list[tuple[int, int]] = []

    def heard() -> bool:
        rings.try_enter(0, 1, _rig.later(0.01))
        for entry in rings.take():
            if entry["flags"] & _abi.COMPLETE_EVENT:
                found.append((int(entry["operation"]), int(entry["user_data"])))
        return bool(found)

    _rig.wait_until(heard, _rig.PATIENCE_S, "the event")
    assert found == [(_abi.EVENT_BUFFER_REVOKED, identity)]
    assert _rig.query_buffer(plane, identity).state == _abi.STATE_REVOKED
    _rig.expect(try_export(plane, identity), errno.ESTALE)
    _rig.expect(plane._map(PAGE, _rig.BOTH, _map_offset(plane, identity)), errno.ESTALE)


def _map_offset(plane: dmaplane.Plane, identity: int) -> int:
    offset: int = _rig.query_buffer(plane, identity).map_offset
    return offset
