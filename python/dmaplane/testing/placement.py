# SPDX-License-Identifier: MIT
"""L6: placement is verified, and strict means strict."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dmaplane import _abi
from dmaplane._plane import Capability
from dmaplane.testing import _rig
from dmaplane.testing._case import MakePlane, case
from dmaplane.testing._rig import MIB, Mapped, create_buffer, query_buffer

if TYPE_CHECKING:
    from dmaplane._plane import Plane


def _nodes(plane: Plane) -> list[int]:
    return [node.node for node in plane.topology().nodes if node.memory_bytes]


def _check_sums(answer: _abi.BufferQuery) -> None:
    on_nodes = sum(answer.node_pages)
    assert answer.pages * answer.page_bytes >= answer.length_bytes
    assert answer.placement in (_abi.PLACEMENT_COUNTED, _abi.PLACEMENT_SINGLE)
    assert on_nodes == answer.pages, f"{on_nodes} pages found of {answer.pages}"


@case("L6", needs=Capability.PLACEMENT)
def every_page_is_counted(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        for length in (1, 4096, 4097, 3 * MIB + 5):
            made = create_buffer(plane, length)
            answer = query_buffer(plane, made.buffer_id)
            assert answer.length_bytes >= length
            assert answer.page_bytes == made.page_bytes
            _check_sums(answer)
            _check_sums(query_buffer(plane, made.buffer_id, _abi.BUFFER_RECHECK))


@case("L6", needs=Capability.PLACEMENT)
def strict_buffer_is_where_it_was_asked_for(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        for node in _nodes(plane):
            for fields in (
                {"policy": _abi.POLICY_BIND, "node_mask": 1 << node},
                {"policy": _abi.POLICY_PREFER, "node": node},
                {"policy": _abi.POLICY_INTERLEAVE, "node_mask": 1 << node},
            ):
                made = create_buffer(plane, 4 * MIB, flags=_abi.BUFFER_STRICT, **fields)
                for flags in (0, _abi.BUFFER_RECHECK):
                    answer = query_buffer(plane, made.buffer_id, flags)
                    _check_sums(answer)
                    assert answer.node_pages[node] == answer.pages
                    assert answer.pages_misplaced == 0


@case("L6", needs=Capability.PLACEMENT)
def interleave_spreads_over_its_nodes(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        nodes = _nodes(plane)
        mask = sum(1 << node for node in nodes)
        made = create_buffer(plane, 4 * MIB, policy=_abi.POLICY_INTERLEAVE, node_mask=mask)
        answer = query_buffer(plane, made.buffer_id)
        _check_sums(answer)
        share = answer.pages / len(nodes)
        for node in nodes:
            assert abs(answer.node_pages[node] - share) <= share * 0.5 + 1, f"node {node}"


@case("L6", needs=Capability.PLACEMENT)
def node_that_is_not_there_is_refused(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        absent = next(n for n in range(_abi.NODES_MAX) if n not in _nodes(plane))
        before = plane.statistics()
        for fields in (
            {"policy": _abi.POLICY_BIND, "node_mask": 1 << absent},
            {"policy": _abi.POLICY_BIND, "node_mask": 1 << absent, "flags": _abi.BUFFER_STRICT},
            {"policy": _abi.POLICY_PREFER, "node": absent, "flags": _abi.BUFFER_STRICT},
        ):
            request = _abi.BufferCreate(length_bytes=4096, **{"node": -1, **fields})
            answer = _rig.ask(plane, _abi.BUFFER_CREATE, request)
            _rig.expect(answer, errno.EINVAL, errno.ENOMEM)
        wrong = _abi.BufferCreate(length_bytes=4096, policy=_abi.POLICY_PREFER, node=_abi.NODES_MAX)
        _rig.expect(_rig.ask(plane, _abi.BUFFER_CREATE, wrong), errno.EINVAL)
        assert plane.statistics().buffers == before.buffers, "a refused create left something"


@case("L6")
def memory_is_zeroed_and_resident(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        for _ in range(3):
            made = create_buffer(plane, 2 * MIB)
            with Mapped(plane, made) as mapped:
                assert not mapped.bytes.any()
                mapped.bytes[:] = 0xFF
            _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)


@case("L6", needs=Capability.HUGE)
def huge_buffer_has_huge_pages_or_fails(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        huge = plane.limits.huge_page_bytes
        request = _abi.BufferCreate(length_bytes=huge, kind=_abi.KIND_HUGE, node=-1)
        answer = _rig.ask(plane, _abi.BUFFER_CREATE, request)
        _rig.expect(answer, 0, errno.ENOMEM)
        if not answer:
            assert request.page_bytes == huge
        request = _abi.BufferCreate(
            length_bytes=huge, kind=_abi.KIND_HUGE, node=-1, flags=_abi.BUFFER_HUGE_PREFER
        )
        _rig.expect(_rig.ask(plane, _abi.BUFFER_CREATE, request), 0)
        assert request.page_bytes in (huge, plane.limits.page_bytes)


@case("L6")
def length_beyond_the_limit_is_refused(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        for length in (plane.limits.buffer_bytes_max + 1, (1 << 64) - 1, 1 << 63):
            request = _abi.BufferCreate(length_bytes=length, node=-1)
            answer = _rig.ask(plane, _abi.BUFFER_CREATE, request)
            _rig.expect(answer, errno.EINVAL, errno.EOVERFLOW, errno.ENOSPC, errno.ENOMEM)
