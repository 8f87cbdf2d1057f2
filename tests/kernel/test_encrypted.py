# SPDX-License-Identifier: MIT
"""DMP_ENCRYPT: on the wire is what the kernel's TLS makes of it; what was changed there is lost.

It is the embedded plane that encrypts, with a kernel that can; this is the machine that surely
has one. tests/endpoint/test_encryption.py is run here too, by test_endpoint.py; here is what
needs this machine: a capture, the module away, bits that change, and of the conformance suite
what the socket below could spoil.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import dmaplane
from dmaplane import _abi, testing
from dmaplane._library import crc32c
from dmaplane.testing import _pair, _rig

MIB = 1 << 20
SOON = 60.0
SECRET = "only-we-two-know"
PATTERN = b"what nobody on the wire may read; "
HELLO, WELCOME, CONFIRM = 120, 224, 128
"""Bytes of the clear frames: connector, acceptor, connector."""

CASES = (
    # What a record is, and where it ends, has nothing to do with frames and payloads:
    "messages-message_arrives_exactly",
    "messages-empty_message_arrives",
    "messages-both_directions_at_once",
    "messages-recv_that_is_too_small_fails_and_the_next_one_gets_it",
    "remote-write_lands_exactly",
    "remote-read_brings_exactly",
    "remote-write_imm_lands_before_its_event",
    "remote-batch_of_writes_to_scattered_places_is_exact",
    # A record that is not whole is no reason to wake up; the rest of it is.
    "messages-who_sleeps_is_woken",
    # Ends, of which TLS has its own idea.
    "interrupting-cancelled_recv_is_not_written",
    "loss-drained_endpoint_finishes_what_it_began",
    "loss-closed_plane_is_lost_to_its_peers_at_once",
    "loss-stopped_peer_is_lost_after_the_time_asked_for",
)
"""Of the conformance suite, what the socket below could spoil: emulated AES is slow."""


def encrypted_sockets() -> int:
    counted = dict(line.split() for line in Path("/proc/net/tls_stat").read_text().splitlines())
    return int(counted["TlsCurrTxSw"]) + int(counted["TlsCurrRxSw"])


@pytest.fixture(autouse=True)
def tls() -> Iterator[None]:
    """The kernel's TLS; afterwards no socket has keys any more."""
    if subprocess.run(["modprobe", "tls"], capture_output=True).returncode:
        pytest.skip("missing-kernel-feature: tls (CONFIG_TLS)")
    yield
    _rig.wait_until(lambda: encrypted_sockets() == 0, 10 * _rig.SECOND, "no socket has keys")


class Link(NamedTuple):
    near_plane: dmaplane.Plane
    far_plane: dmaplane.Plane
    near: dmaplane.Endpoint
    far: dmaplane.Endpoint


@contextlib.contextmanager
def joined(through: Callable[[str], str] = str, *, encrypt: bool = True) -> Iterator[Link]:
    """A connection over tcp, by way of @through."""
    with (
        dmaplane.open(plane="embedded") as one,
        dmaplane.open(plane="embedded") as other,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        other.listen("127.0.0.1:0", secret=SECRET, encrypt=encrypt, require="tcp") as listener,
    ):
        accepting = pool.submit(listener.accept, timeout=SOON)
        try:
            near = one.connect(
                through(listener.address),
                secret=SECRET,
                encrypt=encrypt,
                require="tcp",
                timeout=SOON,
            )
        except dmaplane.DmaplaneError:
            listener.close()
            if accepting.exception(SOON) is None:  # only its answer was changed
                accepting.result().close()
                _rig.wait_until(lambda: other.statistics().endpoints == 0, SOON, "it is gone")
            raise
        with near, accepting.result(SOON) as far:
            yield Link(one, other, near, far)


def transfer(link: Link, length: int) -> list[bytes]:
    """Each kind of operation, once, checked; keys that were on the wire."""
    near, far = link.near, link.far
    with link.near_plane.buffer(length) as ours, link.far_plane.buffer(length) as theirs:
        text = np.frombuffer((PATTERN * (length // len(PATTERN) + 1))[:length], np.uint8)
        ours.numpy()[:] = text
        with theirs.region("rw") as region, near.region(region.key) as remote:
            key = region.key
            near.write(ours[:], remote[:]).wait(SOON)
            assert (theirs.numpy() == text).all()
            theirs.numpy()[:] = np.roll(text, 5)
            near.read(ours[:], remote[:]).wait(SOON)
            assert (ours.numpy() == np.roll(text, 5)).all()
            theirs.numpy()[:] = 0
            near.write_imm(ours[:], remote[:], imm=length & 0xFFFF).wait(SOON)
            assert far.immediate().wait(SOON).immediate == length & 0xFFFF
            assert (theirs.numpy() == ours.numpy()).all()
        theirs.numpy()[:] = 0
        sending = near.send(ours[:], checksum=True)
        far.recv(theirs[:]).wait(SOON)
        sending.wait(SOON)
        assert (theirs.numpy() == ours.numpy()).all()
    return [key]


# ---- what is on the wire


class Capture:
    """What loopback carries, from now on."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 * MIB)  # SO_RCVBUFFORCE
        self._socket.bind(("lo", 0))
        self._socket.setblocking(False)

    def streams(self, port: int) -> dict[str, bytes]:
        """The bytes to and from @port."""
        parts: dict[str, dict[int, bytes]] = {"to": {}, "from": {}}
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, whence = self._socket.recvfrom(1 << 17)
                if whence[2] != socket.PACKET_OUTGOING or packet[12:14] != b"\x08\x00":
                    continue
                total = struct.unpack_from("!H", packet, 16)[0] or len(packet) - 14
                tcp = packet[14 + 4 * (packet[14] & 15) : 14 + total]
                source, target, sequence = struct.unpack_from("!HHI", tcp)
                content = tcp[4 * (tcp[12] >> 4) :]
                if content and port in (source, target):
                    parts["to" if target == port else "from"][sequence] = content
        first = {way: min(found) for way, found in parts.items()}
        return {
            way: b"".join(found[number] for number in sorted(found) if number >= first[way])
            for way, found in parts.items()
        }

    def close(self) -> None:
        self._socket.close()


def is_records(wire: bytes) -> bool:
    """Nothing but whole TLS 1.3 records of data."""
    while wire:
        kind, version, length = struct.unpack_from("!BHH", wire)
        if (kind, version) != (23, 0x0303) or len(wire) < 5 + length:
            return False
        wire = wire[5 + length :]
    return True


def conversation(encrypt: bool) -> tuple[dict[str, bytes], list[bytes]]:
    with contextlib.closing(Capture()) as capture, joined(encrypt=encrypt) as link:
        keys = transfer(link, 100_000)
        port = int(link.near.peer_address.rpartition(":")[2])
        return capture.streams(port), keys


def test_nothing_but_the_handshake_is_clear_on_the_wire() -> None:
    clear, keys = conversation(encrypt=False)
    for way in clear:
        assert clear[way].count(PATTERN) > 2000, "the capture would not see it"
        assert SECRET.encode() not in clear[way]
    assert keys[0] in clear["to"]
    veiled, keys = conversation(encrypt=True)
    for way, frames in {"to": HELLO + CONFIRM, "from": WELCOME}.items():
        assert len(veiled[way]) > 100_000
        for hidden in (PATTERN[:8], SECRET.encode(), keys[0]):
            assert hidden not in veiled[way]
        assert veiled[way][:4] == b"DMPF"
        assert is_records(veiled[way][frames:]), "not switched at that very byte"


@pytest.mark.parametrize("name", CASES)
def test_encrypted_connection_conforms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = (case for case in testing.cases() if str(case) == f"{name}-tcp")
    asked = []

    def ask(plane: dmaplane.Plane, number: int, request: object) -> int:
        if isinstance(request, _abi.Listen | _abi.Connect):
            request.flags |= _abi.ENCRYPT
            asked.append(request)
            if not request.secret_bytes:
                request.secret_bytes = len(SECRET)
                _pair.blob(request.secret, SECRET.encode())
        return _rig.ask(plane, number, request)  # type: ignore[arg-type]

    monkeypatch.setattr(_pair, "ask", ask)
    monkeypatch.setattr(_rig, "SECOND", 4 * _rig.SECOND)  # what is emulated is slow
    case.run(lambda: dmaplane.open(plane="embedded"))
    assert asked, "nothing of it was encrypted"


# ---- who gets in


def test_wrong_secret_is_refused_and_the_right_one_still_gets_in() -> None:
    with dmaplane.open(plane="embedded") as plane, dmaplane.open(plane="embedded") as other:
        with (
            other.listen(secret=SECRET, encrypt=True, require="tcp") as listener,
            concurrent.futures.ThreadPoolExecutor(1) as pool,
        ):
            accepting = pool.submit(listener.accept, timeout=SOON)
            with pytest.raises(dmaplane.NotAllowedError, match="secret"):
                plane.connect(listener.address, secret="x", encrypt=True, timeout=SOON)
            with (
                plane.connect(listener.address, secret=SECRET, encrypt=True, timeout=SOON) as near,
                accepting.result(SOON) as far,
            ):
                transfer(Link(plane, other, near, far), 5000)


WITHOUT = """
import dmaplane
with dmaplane.open(plane="embedded") as plane:
    for ask in (plane.listen, lambda **all: plane.connect("192.0.2.1:9", **all)):
        try:
            ask(secret="x", encrypt=True)
        except dmaplane.UnsupportedError as refused:
            assert "modprobe tls" in refused.needs, refused.needs
        else:
            raise AssertionError("not refused")
    plane.listen(secret="x", encrypt=True, require="shm").close()
"""


def test_without_the_kernels_tls_it_is_refused_with_the_fix() -> None:
    """To whoever may not have the module loaded; shared memory needs none."""
    subprocess.run(["modprobe", "-r", "tls"], check=True)
    words = ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", WITHOUT]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    subprocess.run(["modprobe", "tls"], check=True)


# ---- who sits on the wire


class Relay:
    """Forwards one connection; @change sees the bytes of each way and where they are in it."""

    def __init__(self, change: Callable[[str, int, bytearray], None]) -> None:
        self._change = change
        self._door = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._door]
        self._threads: list[threading.Thread] = []

    def __call__(self, target: str) -> str:
        host, _, port = target.rpartition(":")
        self._start(self._serve, (host, int(port)))
        return f"127.0.0.1:{self._door.getsockname()[1]}"

    def _start(self, body: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=body, args=arguments, daemon=True))
        self._threads[-1].start()

    def _serve(self, target: tuple[str, int]) -> None:
        caller = self._door.accept()[0]
        other = socket.create_connection(target)
        self._sockets += [caller, other]
        self._start(self._pump, "to", caller, other)
        self._start(self._pump, "from", other, caller)

    def _pump(self, way: str, source: socket.socket, target: socket.socket) -> None:
        at = 0
        with contextlib.suppress(OSError):
            while part := bytearray(source.recv(1 << 16)):
                self._change(way, at, part)
                at += len(part)
                target.sendall(part)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for thread in self._threads:
            thread.join(SOON)
        for one in self._sockets:
            one.close()


def flip(way: str, offset: int) -> Callable[[str, int, bytearray], None]:
    """One bit, at @offset of one way."""

    def change(passing: str, at: int, part: bytearray) -> None:
        if passing == way and at <= offset < at + len(part):
            part[offset - at] ^= 0x10

    return change


# Of the first record: its version, its length, its first byte; then deep in what is sent. (Its
# type means nothing in TLS 1.3, and the kernel does not look at it.)
FLIPS = [("to", HELLO + CONFIRM + n) for n in (1, 4, 5, 100, 70_000, 500_003)]
FLIPS += [("from", WELCOME + n) for n in (1, 4, 5, 300_001)]


def write_or_read(link: Link, way: str, seed: int, deep: bool) -> None:
    """A MiB over a wire that changes a byte; what is placed is right as far as it goes."""
    right = np.random.default_rng(seed).integers(1, 256, MIB, dtype=np.uint8)
    with link.near_plane.buffer(MIB) as ours, link.far_plane.buffer(MIB) as theirs:
        source, target = (ours, theirs) if way == "to" else (theirs, ours)
        source.numpy()[:] = right
        try:
            with theirs.region("rw") as region, link.near.region(region.key) as remote:
                act = link.near.write if way == "to" else link.near.read
                act(ours[:], remote[:]).wait(SOON)
        finally:
            found = target.numpy()
            assert ((found == 0) | (found == right)).all(), "a wrong byte was placed"
            assert not deep or (found[:16384] == right[:16384]).all(), "it came too early"


def meet_and_move(relay: Relay, way: str, seed: int, deep: bool) -> None:
    with joined(relay) as link:
        write_or_read(link, way, seed, deep)


@pytest.mark.parametrize(("way", "offset"), FLIPS)
def test_changed_byte_ends_the_connection_and_is_never_placed(way: str, offset: int) -> None:
    with contextlib.closing(Relay(flip(way, offset))) as relay:
        with pytest.raises(dmaplane.PeerLostError):
            meet_and_move(relay, way, offset, offset > 50_000)


def edit(way: str, length: int, offset: int, mask: int) -> Callable[[str, int, bytearray], None]:
    """A bit in the first frame of @way, with a checksum that is right again."""

    def change(passing: str, at: int, part: bytearray) -> None:
        if passing == way and at == 0:
            assert len(part) >= length
            part[offset] ^= mask
            struct.pack_into("<I", part, 52, crc32c(bytes(part[:52] + part[56:length])))

    return change


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (edit("to", HELLO, 64, 1), dmaplane.UnsupportedError),  # features: no encryption
        (edit("from", WELCOME, 64, 1), dmaplane.UnsupportedError),
        (edit("to", HELLO, 90, 1), dmaplane.DmaplaneError),  # the nonces
        (edit("from", WELCOME, 140, 1), dmaplane.NotAllowedError),
    ],
    ids=["no-encryption-asked", "no-encryption-granted", "nonce", "other-nonce"],
)
def test_changed_handshake_lets_nobody_in(
    change: Callable[[str, int, bytearray], None], refused: type[Exception]
) -> None:
    with contextlib.closing(Relay(change)) as relay, pytest.raises(refused):
        meet_and_move(relay, "to", 0, deep=False)


# ---- ends


def test_killed_peer_is_lost_and_leaves_no_keys() -> None:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        with dmaplane.open(plane="embedded") as plane, plane.buffer(MIB) as page:
            near = plane.connect(
                os.read(ours, 99).decode(), secret=SECRET, encrypt=True, require="tcp"
            )
            while True:
                near.send(page[:60_000]).wait(SOON)
    with (
        dmaplane.open(plane="embedded") as plane,
        plane.buffer(MIB) as room,
        plane.listen(secret=SECRET, encrypt=True, require="tcp") as listener,
    ):
        os.write(theirs, listener.address.encode())
        with listener.accept(timeout=SOON) as far:
            for _ in range(5):
                far.recv(room).wait(SOON)
            assert encrypted_sockets() == 4
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            _rig.wait_until(lambda: far.lost is not None, SOON, "it is lost")
    os.close(ours)
    os.close(theirs)
