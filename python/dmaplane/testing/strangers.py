# SPDX-License-Identifier: MIT
"""L12: who does not know the secret, or does not speak the protocol, gets nothing from a plane.

Nor can he keep others from being served.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from typing import TYPE_CHECKING

from dmaplane import _abi
from dmaplane._plane import Capability
from dmaplane.testing import _pair, _rig
from dmaplane.testing._case import MakePlane, case, case_over_fabrics
from dmaplane.testing._pair import Meanwhile, Memory, Side, accept, listen, meet, try_connect
from dmaplane.testing._rig import Rings, expect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmaplane._plane import Path, Plane

ENDPOINT = Capability.ENDPOINT
SECRET = b"sixteen or more bytes that only two sides know"


def _serves(near: Side, far: Side, memories: tuple[Memory, Memory] | None = None) -> None:
    """A message arrives as it was sent."""
    source, target = memories or (near.memory(4096), far.memory(4096))
    source.scramble(near.epoch)
    far.submit(_pair.recv(target, 4096))
    assert near.result(_pair.send(source, 4096)) == 0
    assert int(far.wait()["result"][0]) == 0
    assert (target.bytes == source.bytes).all()


@contextlib.contextmanager
def _accepting(plane: Plane, listener: int, rings: Rings) -> Iterator[Meanwhile]:
    """Somebody accepts all the while, until one has come in or the listener is gone."""

    def body() -> _abi.Accept | None:
        limit = _rig.later(4 * _rig.PATIENCE_S)
        while True:
            answer, made = _pair.try_accept(plane, listener, rings.id, deadline_ns=limit)
            if answer == 0:
                return made
            if answer in (-errno.ESTALE, -errno.ENOENT):
                return None
            expect(answer, errno.EACCES, errno.ECONNRESET, errno.EPROTO)

    with Meanwhile(body) as meanwhile:
        yield meanwhile


WRONG_SECRETS = (b"", b"x", SECRET[:-1], SECRET + b"x", SECRET[:-1] + b"x", b"\0" * 64, bytes(46))


@case_over_fabrics("L12")
def wrong_secret_is_refused(make_plane: MakePlane, path: Path) -> None:
    """And the right one is let in after it, by the same listener."""
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one), Rings(other)
        listener, bound = listen(other, far.id, path=path, secret=SECRET)
        with _accepting(other, listener, far) as accepting:
            for secret in WRONG_SECRETS:
                answer, _ = try_connect(one, near.id, bound, path=path, secret=secret)
                assert answer == -errno.EACCES, f"{secret!r}: {_rig.name_of(answer)}"
                assert one.statistics().endpoints == 0
            assert accepting.running, "somebody was let in"
            answer, made = try_connect(one, near.id, bound, path=path, secret=SECRET)
            expect(answer, 0)
            accepted = accepting.answer()
        assert other.statistics().endpoints == 1
        _serves(Side(one, near, made), Side(other, far, accepted))


@case_over_fabrics("L12")
def secret_that_nobody_asked_for_is_refused(make_plane: MakePlane, path: Path) -> None:
    """A connector with a secret does not talk to a listener that does not know it."""
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one), Rings(other)
        listener, bound = listen(other, far.id, path=path)
        with _accepting(other, listener, far):
            answer, _ = try_connect(one, near.id, bound, path=path, secret=SECRET)
            expect(answer, errno.EACCES)
            expect(_rig.destroy(other, _abi.LISTENER_DESTROY, listener), 0)
        assert one.statistics().endpoints == other.statistics().endpoints == 0


@case_over_fabrics("L12")
def many_wrong_secrets_do_not_lock_out_the_right_one(make_plane: MakePlane, path: Path) -> None:
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one), Rings(other)
        listener, bound = listen(other, far.id, path=path, secret=SECRET)
        with _accepting(other, listener, far) as accepting:
            for n in range(12):
                limit = _rig.later(0.25)
                answer, _ = try_connect(
                    one, near.id, bound, path=path, secret=b"%d" % n, deadline_ns=limit
                )
                # Slowed down after several, which may be longer than the deadline.
                expect(answer, errno.EACCES, errno.ETIMEDOUT, errno.ECONNRESET)
            assert accepting.running, "somebody was let in"
            limit = _rig.later()
            while True:
                answer, made = try_connect(
                    one, near.id, bound, path=path, secret=SECRET, deadline_ns=limit
                )
                if answer == 0:
                    break
                expect(answer, errno.EACCES, errno.ECONNRESET)
            _serves(Side(one, near, made), Side(other, far, accepting.answer()))


@case("L12", needs=ENDPOINT)
def secret_is_mandatory_off_loopback(make_plane: MakePlane) -> None:
    with make_plane() as plane, Rings(plane) as rings:
        for address in ("0.0.0.0:0", "[::]:0"):
            answer, _ = _pair.try_listen(plane, rings.id, address)
            if answer != -errno.EHOSTUNREACH or address[0] != "[":
                expect(answer, errno.EPERM, errno.EINVAL, errno.EACCES)
        answer, made = _pair.try_listen(plane, rings.id, "0.0.0.0:0", secret=SECRET)
        expect(answer, 0)
        expect(_rig.destroy(plane, _abi.LISTENER_DESTROY, made.listener_id), 0)


def _knock(bound: str) -> socket.socket:
    host, _, port = bound.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=_rig.PATIENCE_S)


def _ends(stranger: socket.socket) -> bool:
    """The plane closes it; what it said before that is thrown away."""
    try:
        while stranger.recv(4096):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


@case("L12", needs=ENDPOINT)
def silent_stranger_keeps_nobody_waiting(make_plane: MakePlane) -> None:
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one), Rings(other)
        listener, bound = listen(other, far.id, path="tcp")
        strangers = [_knock(bound) for _ in range(40)]
        _serves(*meet((one, near), (other, far), "tcp", listener, bound))
        for stranger in strangers:
            assert _ends(stranger), "who says nothing is never sent away"
            stranger.close()
        assert other.statistics().endpoints == 1


@case("L12", needs=ENDPOINT)
def garbage_instead_of_a_handshake_is_sent_away(make_plane: MakePlane) -> None:
    chance = random.Random(6)
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one), Rings(other)
        listener, bound = listen(other, far.id, path="tcp", secret=SECRET)
        with _accepting(other, listener, far) as accepting:
            for content in (
                b"GET / HTTP/1.1\r\nHost: you\r\n\r\n" * 9,
                bytes(4096),
                b"\xff" * 4096,
                b"DMPF" + bytes(220),
                b"DMPF\x01\x01" + bytes(220),
                *(chance.randbytes(chance.randrange(1, 9000)) for _ in range(20)),
                *(b"DMPF\x01" + chance.randbytes(chance.randrange(60, 400)) for _ in range(20)),
            ):
                with contextlib.suppress(OSError), _knock(bound) as stranger:
                    stranger.sendall(content)
                    stranger.shutdown(socket.SHUT_WR)
                    assert _ends(stranger), f"{content[:20]!r} is never sent away"
            assert accepting.running, "a stranger was let in"
            answer, made = try_connect(one, near.id, bound, path="tcp", secret=SECRET)
            expect(answer, 0)
            _serves(Side(one, near, made), Side(other, far, accepting.answer()))


@case_over_fabrics("L12")
def strangers_do_not_disturb_who_is_connected(make_plane: MakePlane, path: Path) -> None:
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one), Rings(other)
        listener, bound = listen(other, far.id, secret=SECRET)
        a, b = meet((one, near), (other, far), path, listener, bound, SECRET)
        memories = (a.memory(4096), b.memory(4096))
        fds = _rig.open_fds()
        chance = random.Random(7)
        for _ in range(10):
            strangers = [_knock(bound) for _ in range(4)]
            for stranger in strangers[1:]:
                with contextlib.suppress(ConnectionError):
                    stranger.sendall(chance.randbytes(100))
            _serves(a, b, memories)
            for stranger in strangers:
                stranger.close()
        _rig.wait_until(lambda: _rig.open_fds() <= fds, _rig.PATIENCE_S, "strangers' fds are gone")


@case_over_fabrics("L12")
def refused_and_lost_handshakes_leave_nothing(make_plane: MakePlane, path: Path) -> None:
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one), Rings(other)

        def round_of_failures() -> None:
            listener, bound = listen(other, far.id, path=path, secret=SECRET)
            with _accepting(other, listener, far):
                expect(try_connect(one, near.id, bound, path=path, secret=b"no")[0], errno.EACCES)
                expect(_rig.destroy(other, _abi.LISTENER_DESTROY, listener), 0)

        round_of_failures()
        fds, tasks = _rig.open_fds(), _rig.threads()
        for _ in range(5):
            round_of_failures()
        assert one.statistics().endpoints == other.statistics().endpoints == 0
        _rig.wait_until(lambda: _rig.open_fds() <= fds, _rig.SECOND, "every fd is back")
        _rig.wait_until(lambda: _rig.threads() <= tasks, _rig.SECOND, "every thread is gone")


@case_over_fabrics("L12")
def accept_passes_over_who_has_gone(make_plane: MakePlane, path: Path) -> None:
    """Those who gave up before ACCEPT came; the one who waits is the one that is accepted."""
    with make_plane() as one, make_plane() as other:
        near, far = Rings(one), Rings(other)
        listener, bound = listen(other, far.id, path=path)
        for _ in range(3):
            answer, _ = try_connect(one, near.id, bound, path=path, deadline_ns=_rig.later(0.05))
            expect(answer, errno.ETIMEDOUT)
        with Meanwhile(lambda: try_connect(one, near.id, bound, path=path)) as dialling:
            made = accept(other, listener, far.id)
            answer, connected = dialling.answer()
        expect(answer, 0)
        assert made.epoch == connected.epoch
        _serves(Side(one, near, connected), Side(other, far, made))
