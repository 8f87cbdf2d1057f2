# SPDX-License-Identifier: MIT
"""Kinds of memory: whatever it is made of, it holds, maps, copies and goes like any other."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import struct
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane import _abi
from dmaplane._plane import Capability
from dmaplane.testing import _rig
from dmaplane.testing._case import MakePlane, case
from dmaplane.testing._rig import MIB, Mapped, Rings, copy_of, create_buffer, rows_of

if TYPE_CHECKING:
    from dmaplane._plane import Plane

# _IOW('b', 0, struct dma_buf_sync) of linux/dma-buf.h, and two of its flags
_DMA_BUF_IOCTL_SYNC: Final = 0x40086200
_DMA_BUF_SYNC_BOTH: Final = 3
_DMA_BUF_SYNC_END: Final = 4


def _serves(plane: Plane, made: _abi.BufferCreate) -> None:
    """It is zeroed, can be mapped, filled and copied from and to, and its mapping holds it."""
    chance = random.Random(made.buffer_id)
    length = made.map_bytes
    plain = create_buffer(plane, length)
    with Rings(plane) as rings, Mapped(plane, made) as ours, Mapped(plane, plain) as other:
        assert not ours.bytes.any(), "a new buffer is zeroed"
        pattern = np.frombuffer(chance.randbytes(length), np.uint8)
        ours.bytes[:] = pattern
        out = copy_of(made.buffer_id, plain.buffer_id, length - 7, source_offset=3, target_offset=5)
        assert _rig.results(rings.run(rows_of(out))) == {1: 0}
        assert (other.bytes[5 : length - 2] == pattern[3 : length - 4]).all()
        other.bytes[:] = pattern[::-1]
        back = copy_of(plain.buffer_id, made.buffer_id, length)
        fill = {
            "operation": _abi.OP_FILL,
            "target_id": made.buffer_id,
            "target_offset": 4,
            "length_bytes": 64,
            "immediate": 0x01020304,
        }
        back["flags"] = _abi.SUBMIT_LINK
        assert _rig.results(rings.run(rows_of(back, fill))) == {1: 0, 2: 0}
        assert bytes(ours.bytes[4:68]) == bytes.fromhex("04030201") * 16
        assert (ours.bytes[68:] == pattern[::-1][68:]).all()
        _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), errno.EBUSY)
    _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)
    _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, plain.buffer_id), 0)


@case("L3", needs=Capability.COHERENT)
def coherent_memory_serves_like_any_other(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        for length in (1, 4096, 70_000, MIB):
            made = create_buffer(plane, length, kind=_abi.KIND_COHERENT)
            answer = _rig.query_buffer(plane, made.buffer_id)
            assert (answer.kind, answer.state) == (_abi.KIND_COHERENT, _abi.STATE_LIVE)
            assert answer.length_bytes >= length
            _serves(plane, made)


@case("L6", needs=Capability.COHERENT | Capability.PLACEMENT)
def coherent_memory_is_where_it_was_asked_for(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        for node in (one.node for one in plane.topology().nodes if one.memory_bytes):
            made = create_buffer(
                plane,
                256 << 10,
                kind=_abi.KIND_COHERENT,
                policy=_abi.POLICY_PREFER,
                node=node,
                flags=_abi.BUFFER_STRICT,
            )
            answer = _rig.query_buffer(plane, made.buffer_id, _abi.BUFFER_RECHECK)
            assert answer.node_pages[node] == answer.pages
            assert answer.pages_misplaced == 0


@case("L3", needs=Capability.WRITE_COMBINE)
def write_combined_memory_serves_like_any_other(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        for length in (4096, 70_000, 3 * MIB):
            made = create_buffer(plane, length, flags=_abi.BUFFER_WRITE_COMBINE)
            answer = _rig.query_buffer(plane, made.buffer_id)
            assert answer.create_flags & _abi.BUFFER_WRITE_COMBINE
            _serves(plane, made)


@case("L3", needs=Capability.HUGE)
def huge_memory_serves_like_any_other(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        huge = plane.limits.huge_page_bytes
        made = create_buffer(plane, 1, kind=_abi.KIND_HUGE, flags=_abi.BUFFER_HUGE_PREFER)
        assert made.map_bytes in (huge, plane.limits.page_bytes)
        _serves(plane, made)


@case("L12")
def flag_that_contradicts_the_kind_is_refused(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        for kind, flag in (
            (_abi.KIND_PAGES, _abi.BUFFER_READ_ONLY),
            (_abi.KIND_PAGES, _abi.BUFFER_HUGE_PREFER),
            (_abi.KIND_USER, _abi.BUFFER_HUGE_PREFER),
            (_abi.KIND_USER, _abi.BUFFER_WRITE_COMBINE),
        ):
            request = _abi.BufferCreate(
                length_bytes=4096,
                node=-1,
                kind=kind,
                flags=flag,
                user_addr=4096 if kind == _abi.KIND_USER else 0,
            )
            answer = _rig.ask(plane, _abi.BUFFER_CREATE, request)
            _rig.expect(answer, errno.EINVAL, errno.EOPNOTSUPP)
        assert plane.statistics().buffers == 0


@case("L12", needs=Capability.PEER)
def peer_that_is_not_there_is_refused(make_plane: MakePlane) -> None:
    """An unprivileged caller may be refused before anybody looks for the device."""
    with make_plane() as plane:
        for device, bar, address, wanted in (
            (0xFFFF_FFFF, 0, 0, errno.ENODEV),
            (0xFFFF_FFFF, 99, 1 << 63, errno.ENODEV),
            (0xFFFF_FFFF, 0, 1, errno.EINVAL),
        ):
            request = _abi.BufferCreate(
                length_bytes=4096,
                node=-1,
                kind=_abi.KIND_PEER,
                peer_device=device,
                peer_bar=bar,
                peer_address=address,
            )
            answer = _rig.ask(plane, _abi.BUFFER_CREATE, request)
            _rig.expect(answer, wanted, errno.ENODEV, errno.EPERM)
        assert plane.statistics().buffers == 0


@case("L3", needs=Capability.EXPORT_DMABUF)
def dmabuf_is_one_and_can_be_mapped(make_plane: MakePlane) -> None:
    """It knows the command every dma-buf knows, and shows the bytes of the buffer."""
    with make_plane() as plane:
        made = create_buffer(plane, 8192)
        request = _abi.BufferExport(buffer_id=made.buffer_id, flags=_abi.EXPORT_DMABUF)
        _rig.expect(_rig.ask(plane, _abi.BUFFER_EXPORT, request), 0)
        with mmap.mmap(request.fd, 8192) as shown, Mapped(plane, made) as ours:
            fcntl.ioctl(request.fd, _DMA_BUF_IOCTL_SYNC, struct.pack("Q", _DMA_BUF_SYNC_BOTH))
            shown[:4] = b"here"
            end = _DMA_BUF_SYNC_BOTH | _DMA_BUF_SYNC_END
            fcntl.ioctl(request.fd, _DMA_BUF_IOCTL_SYNC, struct.pack("Q", end))
            assert bytes(ours.bytes[:4]) == b"here"
            ours.bytes[8191] = 9
            assert shown[8191] == 9
        assert os.lseek(request.fd, 0, os.SEEK_END) == 8192
        os.close(request.fd)
