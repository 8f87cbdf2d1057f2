# SPDX-License-Identifier: MIT
"""Every command of the contract, in a table: sizes, flags, reserved bytes (L12, U1, U4).

One mistake per request: each starts from a request that works, or that fails for a
known reason which comes after all checks of form. Whatever is refused must also be
left exactly as it was: outputs are written on success only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import TYPE_CHECKING, Any, Final

from dmaplane import _abi
from dmaplane._plane import Capability
from dmaplane.testing import _rig
from dmaplane.testing._case import MakePlane, case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmaplane._plane import Plane

KNOWN_FLAGS: Final = {
    "BUFFER_CREATE": _abi.BUFFER_STRICT
    | _abi.BUFFER_HUGE_PREFER
    | _abi.BUFFER_WRITE_COMBINE
    | _abi.BUFFER_READ_ONLY,
    "BUFFER_QUERY": _abi.BUFFER_RECHECK,
    "BUFFER_DESTROY": _abi.DESTROY_DRAIN,
    "BUFFER_SYNC": _abi.SYNC_FOR_READ | _abi.SYNC_FOR_WRITE | _abi.SYNC_END,
    "BUFFER_EXPORT": _abi.EXPORT_READ_ONLY | _abi.EXPORT_DMABUF,
    "BUFFER_IMPORT": _abi.IMPORT_READ_ONLY,
    "REGION_DESTROY": _abi.DESTROY_DRAIN,
    "CHANNEL_CREATE": _abi.CHANNEL_BIND_CPU
    | _abi.CHANNEL_BIND_NODE
    | _abi.CHANNEL_SPIN
    | _abi.CHANNEL_EVENTFD,
    "CHANNEL_DESTROY": _abi.DESTROY_DRAIN,
    "CANCEL": _abi.CANCEL_ALL,
    "LISTEN": _abi.REQUIRE_PATH | _abi.ENCRYPT,
    "LISTENER_DESTROY": _abi.DESTROY_DRAIN,
    "CONNECT": _abi.REQUIRE_PATH | _abi.ENCRYPT,
    "ENDPOINT_DESTROY": _abi.DESTROY_DRAIN,
}

NEEDED: Final[dict[str, tuple[Capability, ...]]] = {
    "BUFFER_EXPORT": (Capability.EXPORT,),
    "BUFFER_IMPORT": _rig.IMPORTS,
    "REGION_CREATE": (Capability.REGION,),
    "REGION_QUERY": (Capability.REGION,),
    "REGION_DESTROY": (Capability.REGION,),
    "REGION_IMPORT": (Capability.ENDPOINT,),
    "LISTEN": (Capability.ENDPOINT,),
    "LISTENER_DESTROY": (Capability.ENDPOINT,),
    "CONNECT": (Capability.ENDPOINT,),
    "ACCEPT": (Capability.ENDPOINT,),
    "ENDPOINT_QUERY": (Capability.ENDPOINT,),
    "ENDPOINT_DESTROY": (Capability.ENDPOINT,),
}
"""Any one of these capabilities has the command served."""

CONNECTION: Final = (
    "REGION_CREATE",
    "REGION_QUERY",
    "REGION_DESTROY",
    "LISTEN",
    "LISTENER_DESTROY",
    "CONNECT",
    "ACCEPT",
)
LOOPBACK: Final = b"127.0.0.1:0"


class Bench:
    """A plane with a buffer and a channel, and a well-formed request of each command."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.buffer = _rig.create_buffer(plane, 8192).buffer_id
        made = _abi.ChannelCreate(slots=4)
        _rig.expect(_rig.ask(plane, _abi.CHANNEL_CREATE, made), 0)
        self.channel = made.channel_id
        self.memory = self._memory()
        self.regions: list[int] = []
        self.listeners: list[int] = []

    def _memory(self) -> int:
        """An fd that the plane imports, if it imports anything: a memory file or a dma-buf."""
        claimed = self.plane.capabilities
        if Capability.IMPORT not in claimed and all(need in claimed for need in _rig.SHARES[1:]):
            shared = _rig.create_buffer(self.plane, 8192).buffer_id
            return _rig.export_buffer(self.plane, shared)
        fd = os.memfd_create("conformance", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 8192)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return fd

    def close(self) -> None:
        """The plane takes the rest with it: what refused requests were about, too."""
        os.close(self.memory)

    def served(self, command: _abi.Command) -> bool:
        """Does the plane claim what the command needs?"""
        needs = NEEDED.get(command.name)
        return needs is None or any(need in self.plane.capabilities for need in needs)

    def request(self, command: _abi.Command) -> ctypes.Structure:
        """A request without a mistake in its form. Made anew for every use."""
        plane, name = self.plane, command.name
        made: ctypes.Structure
        if name == "HISTOGRAM":
            made = _abi.Histogram(scope=_abi.SCOPE_CHANNEL, id=self.channel)
        elif name == "BUFFER_CREATE":
            made = _abi.BufferCreate(length_bytes=4096, node=-1)
        elif name == "BUFFER_QUERY":
            made = _abi.BufferQuery(buffer_id=self.buffer)
        elif name == "BUFFER_DESTROY":
            made = _abi.Destroy(id=_rig.create_buffer(plane).buffer_id)
        elif name == "BUFFER_SYNC":
            made = _abi.BufferSync(flags=_abi.SYNC_FOR_READ, buffer_id=self.buffer, length_bytes=64)
        elif name == "BUFFER_EXPORT":
            made = _abi.BufferExport(buffer_id=self.buffer)
        elif name == "BUFFER_IMPORT":
            made = _abi.BufferImport(fd=self.memory)
        elif self.served(command) and name in CONNECTION:
            made = self._of_connections(name)
        elif name == "CHANNEL_CREATE":
            made = _abi.ChannelCreate(slots=4)
        elif name == "CHANNEL_QUERY":
            made = _abi.ChannelQuery(channel_id=self.channel)
        elif name == "CHANNEL_DESTROY":
            channel = _abi.ChannelCreate(slots=1)
            _rig.expect(_rig.ask(plane, _abi.CHANNEL_CREATE, channel), 0)
            made = _abi.Destroy(id=channel.channel_id)
        elif name == "ENTER":
            made = _abi.Enter(channel_id=self.channel)
        elif name == "CANCEL":
            made = _abi.Cancel(channel_id=self.channel, user_data=1)
        else:
            made = command.struct()
        made.size = ctypes.sizeof(made)
        return made

    def _of_connections(self, name: str) -> ctypes.Structure:
        """A request about regions, listeners or endpoints, of a plane that has them."""
        if name == "REGION_CREATE":
            return _abi.RegionCreate(buffer_id=self.buffer, access=1, length_bytes=64)
        if name in ("REGION_QUERY", "REGION_DESTROY"):
            region = _abi.RegionCreate(buffer_id=self.buffer, access=1, length_bytes=64)
            _rig.expect(_rig.ask(self.plane, _abi.REGION_CREATE, region), 0)
            self.regions.append(region.region_id)
            if name == "REGION_QUERY":
                return _abi.RegionQuery(region_id=region.region_id)
            return _abi.Destroy(id=region.region_id)
        if name == "LISTEN":
            request = _abi.Listen(channel_id=self.channel)
            ctypes.memmove(request.address, LOOPBACK, len(LOOPBACK))
            return request
        if name == "LISTENER_DESTROY":
            door: Any = self._of_connections("LISTEN")
            _rig.expect(_rig.ask(self.plane, _abi.LISTEN, door), 0)
            self.listeners.append(door.listener_id)
            return _abi.Destroy(id=door.listener_id)
        if name == "CONNECT":
            # Whoever is asked: the time to be connected by has passed.
            window = {"window_slots": 1, "window_bytes": 4096, "deadline_ns": 1}
            dial = _abi.Connect(channel_id=self.channel, **window)
            ctypes.memmove(dial.address, LOOPBACK[:-1] + b"9", len(LOOPBACK))
            return dial
        window = {"window_slots": 1, "window_bytes": 4096, "deadline_ns": 1}
        return _abi.Accept(listener_id=self.buffer, channel_id=self.channel, **window)

    def answers(self, command: _abi.Command) -> tuple[int, ...]:
        """What the plane may say to a request without a mistake in its form."""
        if not self.served(command):
            return (errno.EOPNOTSUPP,)
        if command.name == "CONNECT":
            return (errno.ETIMEDOUT, errno.ECONNREFUSED)
        if command.name in CONNECTION and command.name != "ACCEPT":
            return (0,)
        if command.name == "CANCEL":
            return (errno.ENOENT,)  # nothing is in flight
        if command.name in NEEDED and command.name not in ("BUFFER_EXPORT", "BUFFER_IMPORT"):
            return (errno.ENOENT, errno.EINVAL, errno.EBUSY)  # names objects that are not there
        return (0,)

    def finish(self, command: _abi.Command, request: ctypes.Structure) -> None:
        """Undoes what a request made, so that limits are not reached."""
        if command.name == "BUFFER_EXPORT":
            os.close(request.fd)
        elif command.name in ("BUFFER_CREATE", "BUFFER_IMPORT"):
            _rig.destroy(self.plane, _abi.BUFFER_DESTROY, request.buffer_id)
        elif command.name == "CHANNEL_CREATE":
            _rig.destroy(self.plane, _abi.CHANNEL_DESTROY, request.channel_id)
        elif command.name == "REGION_CREATE":
            self.regions.append(request.region_id)
        elif command.name == "LISTEN":
            self.listeners.append(request.listener_id)
        while self.regions:
            _rig.destroy(self.plane, _abi.REGION_DESTROY, self.regions.pop())
        while self.listeners:
            _rig.destroy(self.plane, _abi.LISTENER_DESTROY, self.listeners.pop())


def _send(
    bench: Bench, command: _abi.Command, content: bytes, wanted: tuple[int, ...], mistake: str
) -> bytes:
    """Sends exactly these bytes; they come back unchanged unless the answer is 0."""
    room = ctypes.create_string_buffer(content, len(content))
    answer = bench.plane.command(command.number, room)
    assert -answer in wanted, (
        f"{command.name}, {mistake}: got {_rig.name_of(answer)}, "
        f"wanted {' or '.join(_rig.name_of(-number) for number in wanted)}"
    )
    after = room.raw
    if answer:
        assert after == content, f"{command.name}, {mistake}: refused, yet the struct was changed"
    return after


def _each(make_plane: MakePlane) -> Iterator[tuple[Bench, _abi.Command]]:
    with make_plane() as plane:
        bench = Bench(plane)
        try:
            for command in _abi.COMMANDS:
                yield bench, command
        finally:
            bench.close()


def _refusals(bench: Bench, command: _abi.Command, *wanted: int) -> tuple[int, ...]:
    """A plane that does not serve a command may say so before it looks at the form."""
    return wanted if bench.served(command) else (*wanted, errno.EOPNOTSUPP)


@case("L12")
def exact_struct_is_served_or_said_to_be_unsupported(make_plane: MakePlane) -> None:
    for bench, command in _each(make_plane):
        request = bench.request(command)
        content = bytes(request)
        after = _send(bench, command, content, bench.answers(command), "exact")
        if bench.answers(command) == (0,):
            bench.finish(command, type(request).from_buffer_copy(after))


@case("L12")
def short_struct_is_refused(make_plane: MakePlane) -> None:
    for bench, command in _each(make_plane):
        for size in (0, 4, 8, command.size_min - 8, command.size_min - 1):
            if not 0 <= size < command.size_min:
                continue
            request = bench.request(command)
            request.size = size
            wanted = _refusals(bench, command, errno.EINVAL)
            _send(bench, command, bytes(request), wanted, f"size {size}")


@case("L12")
def longer_struct_of_zeros_is_served(make_plane: MakePlane) -> None:
    for bench, command in _each(make_plane):
        for extra in (1, 8, 64):
            request = bench.request(command)
            request.size += extra
            content = bytes(request) + bytes(extra)
            after = _send(bench, command, content, bench.answers(command), f"{extra} zeros more")
            if bench.answers(command) == (0,):
                bench.finish(command, type(request).from_buffer_copy(after))


@case("L12")
def longer_struct_with_content_is_too_big(make_plane: MakePlane) -> None:
    for bench, command in _each(make_plane):
        for extra, at in ((1, 0), (8, 0), (8, 7), (64, 33)):
            request = bench.request(command)
            request.size += extra
            tail = bytearray(extra)
            tail[at] = 1
            wanted = _refusals(bench, command, errno.E2BIG)
            mistake = f"byte {at} of {extra} more is set"
            _send(bench, command, bytes(request) + bytes(tail), wanted, mistake)


@case("L12")
def unknown_flag_is_refused(make_plane: MakePlane) -> None:
    for bench, command in _each(make_plane):
        known = KNOWN_FLAGS.get(command.name, 0)
        for bit in range(32):
            if known >> bit & 1:
                continue
            request = bench.request(command)
            request.flags |= 1 << bit
            wanted = _refusals(bench, command, errno.EINVAL)
            _send(bench, command, bytes(request), wanted, f"flag bit {bit}")


@case("L12")
def reserved_byte_is_refused(make_plane: MakePlane) -> None:
    seen = 0
    for bench, command in _each(make_plane):
        for field in (entry[0] for entry in command.struct._fields_):
            if not field.startswith("reserved"):
                continue
            place = getattr(command.struct, field)
            for at in range(place.offset, place.offset + place.size):
                content = bytearray(bytes(bench.request(command)))
                content[at] = 0x80
                wanted = _refusals(bench, command, errno.EINVAL)
                _send(bench, command, bytes(content), wanted, f"{field}, byte {at}")
                seen += 1
    assert seen >= 4 * 8, "the table of reserved fields got lost"


@case("L12")
def missing_struct_is_efault(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        nowhere = (ctypes.c_char * 8).from_address(0)
        for command in _abi.COMMANDS:
            _rig.expect(plane.command(command.number, nowhere), errno.EFAULT)


@case("L12")
def unknown_command_is_enotty(make_plane: MakePlane) -> None:
    known = {command.number for command in _abi.COMMANDS}
    with make_plane() as plane:
        room = ctypes.create_string_buffer(1024)
        room[0] = b"\x40"
        numbers = {0, 1, 0xDA, 0xFFFF, 0xDB00, 0xDAFF, 0xD900, 0x4008DA00, 0xFFFFFFFF}
        numbers |= {_abi.IOCTL_TYPE << 8 | nr for nr in range(256)}
        for number in sorted(numbers - known):
            _rig.expect(plane.command(number, room), errno.ENOTTY)


@case("L12")
def unserved_capability_is_refused_when_asked_for(make_plane: MakePlane) -> None:
    """What is not claimed answers EOPNOTSUPP, not something else in its place."""
    with make_plane() as plane:
        absent = ~plane.capabilities
        asked = 0
        for needed, fields in (
            (Capability.HUGE, {"kind": _abi.KIND_HUGE}),
            (Capability.COHERENT, {"kind": _abi.KIND_COHERENT}),
            (Capability.PEER, {"kind": _abi.KIND_PEER}),
            (Capability.WRITE_COMBINE, {"flags": _abi.BUFFER_WRITE_COMBINE}),
        ):
            if needed & absent:
                request = _abi.BufferCreate(length_bytes=4096, node=-1, **fields)
                _rig.expect(_rig.ask(plane, _abi.BUFFER_CREATE, request), errno.EOPNOTSUPP)
                asked += 1
        if Capability.EXPORT_DMABUF & absent:
            buffer = _rig.create_buffer(plane).buffer_id
            request_export = _abi.BufferExport(flags=_abi.EXPORT_DMABUF, buffer_id=buffer)
            answer = _rig.ask(plane, _abi.BUFFER_EXPORT, request_export)
            _rig.expect(answer, errno.EOPNOTSUPP)
            asked += 1
        assert asked or not absent & 0x7F


@case("L12")
def value_outside_its_enumeration_is_refused(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        table: tuple[tuple[int, ctypes.Structure], ...] = (
            (_abi.TOPOLOGY, _abi.Topology(kind=99)),
            (_abi.STATISTICS, _abi.Statistics(scope=99)),
            (_abi.STATISTICS, _abi.Statistics(scope=_abi.SCOPE_PLANE, id=1)),
            (_abi.HISTOGRAM, _abi.Histogram(scope=99, id=1)),
            (_abi.BUFFER_CREATE, _abi.BufferCreate(length_bytes=4096, node=-1, kind=99)),
            (_abi.BUFFER_CREATE, _abi.BufferCreate(length_bytes=4096, node=-1, policy=99)),
            (_abi.BUFFER_CREATE, _abi.BufferCreate(length_bytes=0, node=-1)),
            (_abi.BUFFER_CREATE, _abi.BufferCreate(length_bytes=4096, node=0)),
            (_abi.BUFFER_CREATE, _abi.BufferCreate(length_bytes=4096, node=-1, node_mask=1)),
            (_abi.BUFFER_CREATE, _abi.BufferCreate(length_bytes=4096, node=-1, user_addr=4096)),
            (_abi.BUFFER_CREATE, _abi.BufferCreate(length_bytes=4096, node=-1, peer_bar=1)),
            (
                _abi.BUFFER_CREATE,
                _abi.BufferCreate(length_bytes=4096, node=-1, kind=_abi.KIND_IMPORTED),
            ),
            (
                _abi.BUFFER_CREATE,
                _abi.BufferCreate(length_bytes=4096, node=-1, policy=_abi.POLICY_BIND),
            ),
            (_abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=0)),
            (_abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=3)),
            (_abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=_abi.SLOTS_MAX * 2)),
            (_abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=8, completion_slots=4)),
            (_abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=8, completion_slots=9)),
            (_abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=8, spin_us=5)),
            (_abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=8, cpu=1)),
            (_abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=8, node=1)),
            (_abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=8, eventfd=1)),
            (
                _abi.CHANNEL_CREATE,
                _abi.ChannelCreate(slots=8, flags=_abi.CHANNEL_SPIN, spin_us=1_000_001),
            ),
        )
        for index, (number, request) in enumerate(table):
            answer = _rig.ask(plane, number, request)
            assert -answer == errno.EINVAL, f"row {index}: got {_rig.name_of(answer)}"


@case("L12")
def range_outside_the_object_is_refused(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        made = _rig.create_buffer(plane, 8192)
        length = query_length(plane, made.buffer_id)
        for offset, size in ((length, 1), (0, length + 1), (1, length), (4096, 0)):
            request = _abi.BufferSync(
                flags=_abi.SYNC_FOR_READ,
                buffer_id=made.buffer_id,
                offset=offset,
                length_bytes=size,
            )
            _rig.expect(_rig.ask(plane, _abi.BUFFER_SYNC, request), errno.EINVAL)
        request = _abi.BufferSync(
            flags=_abi.SYNC_FOR_READ,
            buffer_id=made.buffer_id,
            offset=(1 << 64) - 64,
            length_bytes=128,
        )
        _rig.expect(_rig.ask(plane, _abi.BUFFER_SYNC, request), errno.EINVAL, errno.EOVERFLOW)


def query_length(plane: Plane, identity: int) -> int:
    """Usable bytes of a buffer."""
    return _rig.query_buffer(plane, identity).length_bytes


@case("L12")
def query_answers_what_the_contract_promises(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        answer = _abi.Query()
        _rig.expect(_rig.ask(plane, _abi.QUERY, answer), 0)
        assert answer.abi_major == _abi.ABI_MAJOR
        assert answer.page_bytes & (answer.page_bytes - 1) == 0
        assert answer.page_bytes >= 4096
        assert 1 <= answer.slots_max <= _abi.SLOTS_MAX
        assert answer.buffers_max >= 1
        assert answer.channels_max >= 1
        assert answer.buffer_bytes_max >= answer.page_bytes
        assert answer.incarnation != 0
        assert 0 in bytes(answer.version), "the version has no end"
        assert answer.fabrics >> _abi.PATH_LOCAL & 1
        if answer.capabilities & _abi.CAP_HUGE:
            assert answer.huge_page_bytes > answer.page_bytes


@case("L12")
def topology_rows_are_complete(make_plane: MakePlane) -> None:
    with make_plane() as plane:
        for kind in (_abi.TOPOLOGY_NODE, _abi.TOPOLOGY_NIC, _abi.TOPOLOGY_GPU):
            index = 0
            while True:
                row = _abi.Topology(kind=kind, index=index)
                answer = _rig.ask(plane, _abi.TOPOLOGY, row)
                if answer == -errno.ENOENT:
                    break
                _rig.expect(answer, 0)
                assert index < row.count
                if kind == _abi.TOPOLOGY_NODE:
                    assert row.memory_bytes >= row.memory_free_bytes
                index += 1
                if index == row.count:
                    beyond = _abi.Topology(kind=kind, index=index)
                    _rig.expect(_rig.ask(plane, _abi.TOPOLOGY, beyond), errno.ENOENT)
            if kind == _abi.TOPOLOGY_NODE:
                assert index >= 1, "a machine has at least one node"
                assert index == plane.nodes
