# SPDX-License-Identifier: MIT
"""L6 against the truth: pages are where the module says, and where they were asked for.

The truth comes from pagemap.py. The guest has two nodes; one of them is filled here until
nothing more fits.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import time
from collections.abc import Iterator

import kmsg
import pagemap
import pytest
from driver import Driver

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _rig
from dmaplane.testing._rig import MIB, Mapped, create_buffer, query_buffer

pytestmark = pytest.mark.numa

STRICT = _abi.BUFFER_STRICT
KILLED = ("Out of memory", "oom-kill", "oom_reaper", "invoked oom-killer", "allocation failure")


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="kernel") as plane:
        assert plane.nodes >= 2, "these tests need a machine of two nodes"
        yield plane


def nodes(plane: dmaplane.Plane) -> list[int]:
    return [node.node for node in plane.topology().nodes if node.memory_bytes]


def claimed(answer: _abi.BufferQuery) -> dict[int, int]:
    """What the module says, in base pages."""
    scale = answer.page_bytes // pagemap.PAGE
    return {node: count * scale for node, count in enumerate(answer.node_pages) if count}


def check_truth(plane: dmaplane.Plane, made: _abi.BufferCreate) -> _abi.BufferQuery:
    """The placement of a buffer that can be mapped is the truth, then and now."""
    with Mapped(plane, made) as mapped:
        address = mapped.bytes.ctypes.data
        truth = pagemap.pages_by_node(address, made.map_bytes)
    for flags in (0, _abi.BUFFER_RECHECK):
        answer = query_buffer(plane, made.buffer_id, flags)
        assert answer.placement == _abi.PLACEMENT_COUNTED
        assert claimed(answer) == truth
    return answer


def on(policy: int, node: int) -> dict[str, int]:
    """Fields that ask for one node."""
    if policy == _abi.POLICY_PREFER:
        return {"policy": policy, "node": node}
    return {"policy": policy, "node_mask": 1 << node}


@contextlib.contextmanager
def bytes_allowed(driver: Driver, limit: int) -> Iterator[None]:
    """The module's limit on what it allocates, for a while."""
    parameter = driver.folder / "parameters/bytes_max"
    before = parameter.read_text()
    parameter.write_text(str(limit))
    try:
        yield
    finally:
        parameter.write_text(before)


@contextlib.contextmanager
def full_node(driver: Driver, node: int) -> Iterator[None]:
    """For as long as this lasts, @node has no memory left to give."""
    with bytes_allowed(driver, 1 << 40), dmaplane.open(plane="kernel") as filler:
        for length in (32 * MIB, MIB, pagemap.PAGE):
            for _ in range(4096):
                request = _abi.BufferCreate(
                    length_bytes=length, node=node, policy=_abi.POLICY_PREFER, flags=STRICT
                )
                answer = _rig.ask(filler, _abi.BUFFER_CREATE, request)
                if answer:
                    _rig.expect(answer, errno.ENOMEM)
                    break
            else:
                pytest.fail(f"node {node} does not get full")
        yield


# ---- the truth, kind by kind and policy by policy


@pytest.mark.parametrize(
    ("kind", "length"),
    [(_abi.KIND_PAGES, 5 * MIB + 4097), (_abi.KIND_HUGE, 4 * MIB)],
    ids=["pages", "huge"],
)
def test_reported_placement_is_the_truth(plane: dmaplane.Plane, kind: int, length: int) -> None:
    for node in nodes(plane):
        for policy in (_abi.POLICY_PREFER, _abi.POLICY_BIND):
            made = create_buffer(plane, length, kind=kind, flags=STRICT, **on(policy, node))
            answer = check_truth(plane, made)
            assert claimed(answer) == {node: answer.pages * answer.page_bytes // pagemap.PAGE}
            assert answer.pages_misplaced == 0
    check_truth(plane, create_buffer(plane, length, kind=kind))


def test_coherent_memory_is_taken_from_its_node(plane: dmaplane.Plane) -> None:
    """Its mappings have no frame numbers to read, but a node knows what it has lost."""
    count, length = 64, MIB
    for node in nodes(plane):
        before = {each: pagemap.taken_bytes(each) for each in nodes(plane)}
        for _ in range(count):
            fields = {"kind": _abi.KIND_COHERENT, "flags": STRICT, **on(_abi.POLICY_BIND, node)}
            made = create_buffer(plane, length, **fields)
            answer = query_buffer(plane, made.buffer_id, _abi.BUFFER_RECHECK)
            assert claimed(answer) == {node: length // pagemap.PAGE}
        for each, taken in before.items():
            lost = pagemap.taken_bytes(each) - taken
            if each == node:
                assert lost > count * length * 3 // 4, f"node {each} lost {lost} bytes"
            else:
                assert lost < count * length // 4, f"node {each} lost {lost} bytes"


def test_interleaved_pages_alternate_between_the_nodes(plane: dmaplane.Plane) -> None:
    mask = sum(1 << node for node in nodes(plane))
    fields = {"policy": _abi.POLICY_INTERLEAVE, "node_mask": mask, "flags": STRICT}
    made = create_buffer(plane, 2 * MIB, **fields)
    check_truth(plane, made)
    with Mapped(plane, made) as mapped:
        frames = pagemap.frames(mapped.bytes.ctypes.data, made.map_bytes)
    found = [pagemap.node_of(int(frame)) for frame in frames]
    wanted = nodes(plane)
    assert found == [wanted[index % len(wanted)] for index in range(len(found))]


def test_write_combined_pages_are_placed_as_well(plane: dmaplane.Plane) -> None:
    for node in nodes(plane):
        flags = STRICT | _abi.BUFFER_WRITE_COMBINE
        made = create_buffer(plane, 2 * MIB, flags=flags, **on(_abi.POLICY_BIND, node))
        assert list(claimed(check_truth(plane, made))) == [node]


def test_user_memory_is_reported_where_the_user_put_it(plane: dmaplane.Plane) -> None:
    length = 3 * MIB
    for node in nodes(plane):
        area = mmap.mmap(-1, length + pagemap.PAGE)
        view = (ctypes.c_char * length).from_buffer(area, 100)
        address = ctypes.addressof(view)
        pagemap.bind(address - 100, length + pagemap.PAGE, node)
        made = create_buffer(plane, length, kind=_abi.KIND_USER, user_addr=address)
        truth = pagemap.pages_by_node(address, length)
        assert list(truth) == [node]
        for flags in (0, _abi.BUFFER_RECHECK):
            answer = query_buffer(plane, made.buffer_id, flags)
            assert claimed(answer) == truth
            assert answer.pages == length // pagemap.PAGE + 1, "it begins inside a page"
        elsewhere = _abi.BufferCreate(
            length_bytes=length,
            kind=_abi.KIND_USER,
            user_addr=address,
            flags=STRICT,
            policy=_abi.POLICY_PREFER,
            node=next(other for other in nodes(plane) if other != node),
        )
        answer = _rig.ask(plane, _abi.BUFFER_CREATE, elsewhere)
        _rig.expect(answer, errno.ENOMEM)
        _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)
        del view
        area.close()


def test_any_follows_the_policy_of_the_caller(plane: dmaplane.Plane) -> None:
    """A program started under numactl gets what it was started for."""
    for node in nodes(plane):
        pagemap.prefer_for_this_thread(node)
        try:
            made = create_buffer(plane, 3 * MIB)
        finally:
            pagemap.prefer_for_this_thread(None)
        answer = check_truth(plane, made)
        assert list(claimed(answer)) == [node]
        assert answer.pages_misplaced == 0


def test_nobody_moves_the_pages_of_a_buffer(plane: dmaplane.Plane) -> None:
    first, second = nodes(plane)[:2]
    made = create_buffer(plane, MIB, flags=STRICT, **on(_abi.POLICY_BIND, first))
    area = mmap.mmap(-1, MIB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    pagemap.bind(address, MIB, first)
    user = create_buffer(plane, MIB, kind=_abi.KIND_USER, user_addr=address)
    with Mapped(plane, made) as mapped:
        for where, owner in ((mapped.bytes.ctypes.data, made), (address, user)):
            before = pagemap.frames(where, MIB)
            pagemap.try_to_move(where, MIB, second)
            assert (pagemap.frames(where, MIB) == before).all()
            answer = query_buffer(plane, owner.buffer_id, _abi.BUFFER_RECHECK)
            assert claimed(answer) == {first: MIB // pagemap.PAGE}
    _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, user.buffer_id), 0)


# ---- under pressure


def test_full_node_refuses_the_strict_and_spills_the_others(
    plane: dmaplane.Plane, driver: Driver
) -> None:
    length = 64 * MIB
    everywhere = sum(1 << node for node in nodes(plane))
    for node in nodes(plane):
        with kmsg.Reader() as log:
            with full_node(driver, node):
                before = plane.statistics()
                for fields in (
                    {**on(_abi.POLICY_PREFER, node), "flags": STRICT},
                    {**on(_abi.POLICY_BIND, node), "flags": STRICT},
                    on(_abi.POLICY_BIND, node),
                    {
                        "policy": _abi.POLICY_INTERLEAVE,
                        "node_mask": everywhere,
                        "flags": STRICT,
                    },
                    {
                        **on(_abi.POLICY_PREFER, node),
                        "flags": STRICT,
                        "kind": _abi.KIND_HUGE,
                    },
                ):
                    request = _abi.BufferCreate(length_bytes=length, **{"node": -1, **fields})
                    answer = _rig.ask(plane, _abi.BUFFER_CREATE, request)
                    assert answer == -errno.ENOMEM, f"{fields}: {_rig.name_of(answer)}"
                after = plane.statistics()
                assert (after.buffers, after.buffer_bytes) == (before.buffers, before.buffer_bytes)

                for fields in (
                    on(_abi.POLICY_PREFER, node),
                    {"policy": _abi.POLICY_INTERLEAVE, "node_mask": everywhere},
                ):
                    made = create_buffer(plane, length, **fields)
                    answer = check_truth(plane, made)
                    outside = answer.pages - answer.node_pages[node]
                    assert outside > answer.pages // 2, "there was room on a full node"
                    preferred = answer.policy == _abi.POLICY_PREFER
                    assert answer.pages_misplaced == (outside if preferred else 0)
                    _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)
            made = create_buffer(plane, length, flags=STRICT, **on(_abi.POLICY_PREFER, node))
            assert list(claimed(check_truth(plane, made))) == [node]
            _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id), 0)
            said = [line for line in log.lines() if any(word in line for word in KILLED)]
        assert not said, said


def test_strict_request_takes_the_last_of_a_node_or_none(
    plane: dmaplane.Plane, driver: Driver
) -> None:
    """More than a node has free: refused, and every byte of it is given back."""
    for node in nodes(plane):
        before = pagemap.taken_bytes(node)
        for _ in range(3):
            request = _abi.BufferCreate(
                length_bytes=pagemap.free_bytes(node) + 64 * MIB,
                node=node,
                policy=_abi.POLICY_PREFER,
                flags=STRICT,
            )
            with bytes_allowed(driver, 1 << 40):
                answer = _rig.ask(plane, _abi.BUFFER_CREATE, request)
            if answer:
                _rig.expect(answer, errno.ENOMEM)
            else:
                # Files' pages were reclaimed for it: allowed, if all of it is where it should be.
                assert claimed(query_buffer(plane, request.buffer_id)).keys() == {node}
                _rig.expect(_rig.destroy(plane, _abi.BUFFER_DESTROY, request.buffer_id), 0)
        limit = time.monotonic() + _rig.PATIENCE_S
        while (lost := pagemap.taken_bytes(node) - before) > 32 * MIB:
            assert time.monotonic() < limit, f"node {node} has lost {lost} bytes"
            time.sleep(0.1)
