# SPDX-License-Identifier: MIT
"""How two planes find each other. L8: by which path, always said. L7: every connection is new.

Who is let in, and what strangers can do, is in strangers.py.
"""

from __future__ import annotations

import errno
import functools
import socket
import tempfile
import time
from typing import TYPE_CHECKING

from dmaplane import _abi
from dmaplane._plane import PATHS, Capability
from dmaplane.testing import _pair, _rig
from dmaplane.testing._case import MakePlane, MissingPath, case, case_over_fabrics
from dmaplane.testing._pair import Meanwhile, Side, accept, listen, meet, try_accept, try_connect
from dmaplane.testing._rig import Rings, expect

if TYPE_CHECKING:
    import numpy as np

    from dmaplane._plane import Path

ENDPOINT = Capability.ENDPOINT


def _hello(near: Side, far: Side) -> None:
    """Something goes each way."""
    for one, other in ((near, far), (far, near)):
        source, target = one.memory(4096), other.memory(4096)
        source.scramble(one.epoch)
        other.submit(_pair.recv(target, 100))
        assert one.result(_pair.send(source, 100)) == 0
        assert int(other.wait()["result"][0]) == 0
        assert (target.bytes[:100] == source.bytes[:100]).all()


@case_over_fabrics("L8")
def both_sides_say_which_path_and_whose_connection(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path) as (near, far):
        asked = PATHS.index(path)
        for one, other in ((near, far), (far, near)):
            found = one.query()
            assert (one.path, found.path) == (asked, asked)
            assert found.state == _abi.STATE_LIVE
            assert found.epoch == one.epoch == other.epoch
            assert found.peer_incarnation == other.plane.incarnation
            assert _pair.text(found.peer_address)
            assert (found.operations, found.regions) == (0, 0)
            assert one.plane.statistics().endpoints == 1
        _hello(near, far)


@case("L8", needs=ENDPOINT)
def path_is_chosen_by_the_plane_and_reported(make_plane: MakePlane) -> None:
    """Same machine, same user, nothing required: shared memory where the plane has it."""
    with _pair.connected(make_plane, None) as (near, far):
        wanted = "shm" if "shm" in near.plane.paths else "tcp"
        assert (PATHS[near.path], PATHS[far.path]) == (wanted, wanted)
        _hello(near, far)
        source, target = near.memory(64), far.memory(64)
        far.submit(_pair.recv(target, 64))
        assert PATHS[int(near.run(_pair.send(source, 64))["path"][0])] == wanted
        assert PATHS[int(far.wait()["path"][0])] == wanted


@case("L8", needs=ENDPOINT)
def required_path_that_is_not_there_is_enodev(make_plane: MakePlane) -> None:
    with make_plane() as one, make_plane() as other, Rings(one) as near, Rings(other) as far:
        for number, path in enumerate(PATHS):
            if path in ("none", "local", "peer") or path in one.paths:
                continue
            flags = {"flags": _abi.REQUIRE_PATH, "path": number}
            expect(_pair.try_listen(one, near.id, fields=flags)[0], errno.ENODEV)
            expect(try_connect(one, near.id, "127.0.0.1:9", fields=flags)[0], errno.ENODEV)
        only: tuple[tuple[Path, Path], ...] = (("tcp", "shm"), ("shm", "tcp"))
        for offered, asked in only:
            if not {offered, asked} <= set(one.paths):
                continue
            listener, bound = listen(other, far.id, path=offered)
            # Nobody at a port is the same as nobody who offers that path there.
            refused = (errno.ENODEV, errno.ECONNREFUSED)
            expect(try_connect(one, near.id, bound, path=asked)[0], *refused)
            # ... and what is offered is had without asking for it by name
            with Meanwhile(functools.partial(try_connect, one, near.id, bound)) as dialling:
                made = accept(other, listener, far.id)
                answer, connected = dialling.answer()
            expect(answer, 0)
            assert PATHS[made.path_taken] == PATHS[connected.path_taken] == offered
            for plane, end in ((one, connected), (other, made)):
                expect(_rig.destroy(plane, _abi.ENDPOINT_DESTROY, end.endpoint_id), 0)
            expect(_rig.destroy(other, _abi.LISTENER_DESTROY, listener), 0)


@case("L8", needs=ENDPOINT)
def unix_address_is_shared_memory_and_nothing_else(make_plane: MakePlane) -> None:
    with make_plane() as one, make_plane() as other, Rings(one) as near, Rings(other) as far:
        if "shm" not in one.paths:
            raise MissingPath("shm")
        with tempfile.TemporaryDirectory() as folder:
            address = f"unix:{folder}/door"
            expect(_pair.try_listen(other, far.id, address, path="tcp")[0], errno.ENODEV)
            listener, bound = listen(other, far.id, address)
            assert bound == address
            expect(_pair.try_listen(other, far.id, address)[0], errno.EADDRINUSE)
            expect(try_connect(one, near.id, address, path="tcp")[0], errno.ENODEV)
            a, b = meet((one, near), (other, far), None, listener, bound)
            assert (PATHS[a.path], PATHS[b.path]) == ("shm", "shm")
            _hello(a, b)
            expect(_rig.destroy(other, _abi.LISTENER_DESTROY, listener), 0)
            _hello(a, b)
            expect(try_connect(one, near.id, address)[0], errno.ECONNREFUSED)
            listener, _ = listen(other, far.id, address)
            expect(_rig.destroy(other, _abi.LISTENER_DESTROY, listener), 0)
            for side in (a, b):
                expect(side.destroy(), 0)


@case_over_fabrics("L8")
def ipv6_is_served_as_ipv4_is(make_plane: MakePlane, path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return  # this machine has none; the address is then refused as any other
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one), Rings(other)
        a, b = _pair.join((one, near), (other, far), path, address="[::1]:0")
        assert PATHS[a.path] == path
        _hello(a, b)


@case("L8", needs=ENDPOINT)
def bound_address_has_the_port_that_was_taken(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        listener, bound = listen(plane, rings.id, "127.0.0.1:0")
        host, _, port = bound.rpartition(":")
        assert host == "127.0.0.1"
        assert 0 < int(port) < 65536
        expect(_pair.try_listen(plane, rings.id, bound)[0], errno.EADDRINUSE)
        expect(_rig.destroy(plane, _abi.LISTENER_DESTROY, listener), 0)
        listener, again = listen(plane, rings.id, bound)
        assert again == bound
        expect(_rig.destroy(plane, _abi.LISTENER_DESTROY, listener), 0)
        expect(_rig.destroy(plane, _abi.LISTENER_DESTROY, listener), errno.ENOENT)


WRONG_ADDRESSES = (
    "",
    ":",
    "nonsense",
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:port",
    "127.0.0.1:65536",
    "127.0.0.1:-1",
    "127.0.0.1:1x",
    "[::1]",
    "[::1:7",
    "unix:",
    "unix:" + "x" * 122,
    "127.0.0.1:" + "1" * 118,
)


@case("L12", needs=ENDPOINT)
def wrong_address_is_refused(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        for address in (*WRONG_ADDRESSES, "y" * 128):
            wanted = (errno.EINVAL, errno.EHOSTUNREACH)
            answer, _ = _pair.try_listen(plane, rings.id, address)
            assert -answer in wanted, f"listen {address!r}: {_rig.name_of(answer)}"
            answer, _ = try_connect(plane, rings.id, address)
            assert -answer in wanted, f"connect {address!r}: {_rig.name_of(answer)}"
        assert plane.statistics().endpoints == 0


@case("L12", needs=ENDPOINT)
def wrong_value_is_refused(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        listener, bound = listen(plane, rings.id)
        wrong: tuple[tuple[dict[str, int], int], ...] = (
            ({"path": _abi.PATH_TCP}, errno.EINVAL),
            ({"flags": _abi.REQUIRE_PATH, "path": 99}, errno.EINVAL),
            ({"flags": _abi.REQUIRE_PATH, "path": _abi.PATH_NONE}, errno.EINVAL),
        )
        for fields, wanted in wrong:
            for answer in (
                _pair.try_listen(plane, rings.id, fields=fields)[0],
                try_connect(plane, rings.id, bound, fields=fields)[0],
            ):
                assert -answer in (wanted, errno.ENODEV), f"{fields}: {_rig.name_of(answer)}"
        for number, request in (
            (_abi.LISTEN, _abi.Listen(channel_id=rings.id, secret_bytes=65)),
            (_abi.CONNECT, _abi.Connect(channel_id=rings.id, secret_bytes=65, **_pair.WINDOW)),
        ):
            _pair.blob(request.address, bound.encode())
            expect(_rig.ask(plane, number, request), errno.EINVAL)
        expect(_pair.try_listen(plane, 4_000_000_000)[0], errno.ENOENT)
        expect(try_connect(plane, 4_000_000_000, bound)[0], errno.ENOENT)
        expect(try_accept(plane, listener, 4_000_000_000)[0], errno.ENOENT)
        expect(try_accept(plane, 4_000_000_000, rings.id)[0], errno.ENOENT)
        for number in (_abi.LISTENER_DESTROY, _abi.ENDPOINT_DESTROY):
            expect(_rig.destroy(plane, number, 4_000_000_000), errno.ENOENT)
            expect(_rig.destroy(plane, number, rings.id), errno.ENOENT, errno.EINVAL)
        query = _abi.EndpointQuery(endpoint_id=listener)
        expect(_rig.ask(plane, _abi.ENDPOINT_QUERY, query), errno.ENOENT)
        expect(_rig.destroy(plane, _abi.LISTENER_DESTROY, listener), 0)


@case_over_fabrics("L8")
def nobody_there_is_connection_refused(make_plane: MakePlane, path: Path) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        listener, bound = listen(plane, rings.id, path=path)
        expect(_rig.destroy(plane, _abi.LISTENER_DESTROY, listener), 0)
        answer, _ = try_connect(plane, rings.id, bound, path=path)
        expect(answer, errno.ECONNREFUSED)
        answer, _ = try_connect(plane, rings.id, bound)
        expect(answer, errno.ECONNREFUSED)
        if path == "shm":
            with tempfile.TemporaryDirectory() as folder:
                answer, _ = try_connect(plane, rings.id, f"unix:{folder}/nobody")
                expect(answer, errno.ECONNREFUSED)


@case_over_fabrics("L1")
def connect_ends_at_its_deadline(make_plane: MakePlane, path: Path) -> None:
    """Somebody listens and never accepts. What was begun is gone with the answer."""
    with make_plane() as one, make_plane() as other, Rings(one) as near, Rings(other) as far:
        _hello(*_pair.join((one, near), (other, far), path))
        for side in _pair.join((one, near), (other, far), path):
            expect(side.destroy(), 0)
        fds = _rig.open_fds()
        alive = one.statistics().endpoints
        listener, bound = listen(other, far.id, path=path)
        for _ in range(3):
            started = time.monotonic()
            answer, _ = try_connect(one, near.id, bound, path=path, deadline_ns=_rig.later(0.1))
            expect(answer, errno.ETIMEDOUT)
            assert time.monotonic() - started < 0.1 + _rig.PATIENCE_S
            assert one.statistics().endpoints == alive
        answer, _ = try_connect(one, near.id, bound, path=path, deadline_ns=1)
        expect(answer, errno.ETIMEDOUT)
        expect(_rig.destroy(other, _abi.LISTENER_DESTROY, listener), 0)
        # The far end may keep those who left until somebody accepts, and no longer.
        _rig.wait_until(lambda: _rig.open_fds() <= fds, _rig.SECOND, "every fd is back")


@case("L1", needs=ENDPOINT)
def accept_ends_at_its_deadline(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        listener, _ = listen(plane, rings.id)
        for _ in range(3):
            answer, _ = try_accept(plane, listener, rings.id, deadline_ns=1)
            expect(answer, errno.EAGAIN)
            soon = _rig.later(0.05)
            answer, _ = try_accept(plane, listener, rings.id, deadline_ns=soon)
            expect(answer, errno.ETIMEDOUT)
            assert time.monotonic_ns() >= soon
        assert plane.statistics().endpoints == 0
        expect(_rig.destroy(plane, _abi.LISTENER_DESTROY, listener), 0)


@case("L4", needs=ENDPOINT)
def destroyed_listener_ends_the_accept_that_waits(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        for _ in range(5):
            listener, _ = listen(plane, rings.id)
            limit = _rig.later(4 * _rig.PATIENCE_S)
            call = functools.partial(try_accept, plane, listener, rings.id, deadline_ns=limit)
            with Meanwhile(call) as waiting:
                time.sleep(0.01)
                expect(_rig.destroy(plane, _abi.LISTENER_DESTROY, listener), 0)
                answer, _ = waiting.answer()
            expect(answer, errno.ESTALE, errno.ENOENT)


@case_over_fabrics("L8")
def listener_says_that_somebody_is_there(make_plane: MakePlane, path: Path) -> None:
    """An event on the listener's channel for each; several wait, in order, and are accepted."""
    with make_plane() as one, make_plane() as other:
        near, far, door = Rings(one), Rings(other), Rings(other)
        listener, bound = listen(other, door.id, path=path)
        numbers = (11, 12, 13)
        calls = [
            Meanwhile(
                functools.partial(
                    try_connect, one, near.id, bound, path=path, fields={"user_data": n}
                )
            )
            for n in numbers
        ]
        for _ in numbers:
            event = _door_event(door)
            assert int(event["user_data"]) == listener
            assert int(event["result"]) == 0
            made = accept(other, listener, far.id)
            assert PATHS[made.path_taken] == path
        epochs = set()
        for call in calls:
            answer, made = call.answer()
            expect(answer, 0)
            epochs.add(made.epoch)
        assert len(epochs) == len(numbers)
        assert (one.statistics().endpoints, other.statistics().endpoints) == (3, 3)


def _door_event(door: Rings) -> np.void:
    """The next completion on a channel that only a listener uses."""
    limit = _rig.later()
    while door.control.complete_head == door.control.complete_tail:
        expect(door.try_enter(0, 1, limit)[1], 0)
    head = door.control.complete_head
    event: np.void = door.completions[head & (door.completion_slots - 1)].copy()
    door.control.complete_head = (head + 1) & 0xFFFFFFFF
    assert int(event["flags"]) & _abi.COMPLETE_EVENT
    assert int(event["operation"]) == _abi.EVENT_CONNECTION
    return event


@case_over_fabrics("L7")
def epoch_is_never_used_twice(make_plane: MakePlane, path: Path) -> None:
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one), Rings(other)
        listener, bound = listen(other, far.id, path=path)
        seen: set[int] = set()
        ids: set[int] = set()
        for round_ in range(8):
            a, b = meet((one, near), (other, far), path, listener, bound)
            assert a.epoch == b.epoch != 0
            assert a.epoch not in seen, f"epoch {a.epoch} twice, round {round_}"
            assert a.endpoint not in ids, "an id was used again"
            seen.add(a.epoch)
            ids.add(a.endpoint)
            expect(a.destroy(), 0)
            expect(b.destroy(), 0)
            for side in (a, b):
                expect(side.try_query()[0], errno.ENOENT)
                expect(side.destroy(), errno.ENOENT)


@case_over_fabrics("L4")
def connections_that_end_return_every_fd_and_thread(make_plane: MakePlane, path: Path) -> None:
    with _pair.connected(make_plane, path) as (near, far):
        _hello(near, far)  # what is opened once and kept is open now
    fds, tasks = _rig.open_fds(), _rig.threads()
    for round_ in range(6):
        with _pair.connected(make_plane, path) as (near, far):
            _hello(near, far)
            memory = far.memory(4096)
            near.import_region(far.region(memory))
            if round_ % 2:
                far.submit(*(_pair.recv(memory, 64) for _ in range(10)))
    _rig.wait_until(lambda: _rig.open_fds() <= fds, _rig.SECOND, "every fd is back")
    _rig.wait_until(lambda: _rig.threads() <= tasks, _rig.SECOND, "every thread is gone")


@case_over_fabrics("L12")
def endpoints_are_served_up_to_the_limit_and_not_beyond(make_plane: MakePlane, path: Path) -> None:
    """Two channels with many endpoints each; every one of them carries its own bytes."""
    count = 24
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one), Rings(other)
        assert one.limits.endpoints_max >= count
        listener, bound = listen(other, far.id, path=path)
        window = {"window_slots": 4, "window_bytes": 8192}
        pairs = [
            meet(
                (one, near),
                (other, far),
                path,
                listener,
                bound,
                near_fields={**window, "user_data": n},
                far_fields={**window, "user_data": n},
            )
            for n in range(1, count + 1)
        ]
        assert one.statistics().endpoints == count
        near_bytes, far_bytes = pairs[0][0].memory(count * 64), pairs[0][1].memory(count * 64)
        near_bytes.scramble(1)
        for n, (_, b) in enumerate(pairs):
            b.submit(_pair.recv(far_bytes, 64, n * 64, user_data=n))
        for n, (a, _) in enumerate(pairs):
            a.submit(_pair.send(near_bytes, 64, n * 64, user_data=n))
        assert set(_rig.results(pairs[0][0].wait(count)).items()) == {(n, 0) for n in range(count)}
        assert set(_rig.results(pairs[0][1].wait(count)).items()) == {(n, 0) for n in range(count)}
        assert (near_bytes.bytes[: count * 64] == far_bytes.bytes[: count * 64]).all()
        for a, b in pairs[::2]:
            expect(a.destroy(), 0)
            expect(b.destroy(), 0)
        for n, (a, b) in enumerate(pairs):
            if n % 2:
                b.submit(_pair.recv(far_bytes, 64, user_data=99))
                a.submit(_pair.send(near_bytes, 64, user_data=99))
                assert int(a.wait()["result"][0]) == 0
                assert int(b.wait()["result"][0]) == 0
