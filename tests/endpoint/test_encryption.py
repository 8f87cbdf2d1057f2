# SPDX-License-Identifier: MIT
"""ENCRYPT on tcp: what a tap on the wire sees, and what it can do.

Needs TLS in the kernel; where there is none the plane says so, and
tests/kernel/test_endpoint.py runs the rest in a machine that has it.
"""

from __future__ import annotations

import contextlib
import errno
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tap import Tap

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _pair, _rig
from dmaplane.testing._pair import Meanwhile, Side, read, recv, send, write, write_imm
from dmaplane.testing._rig import MIB, Rings, expect

SECRET = b"what both ends know and the wire does not"
TCP = {"flags": _abi.REQUIRE_PATH, "path": _abi.PATH_TCP}
ENCRYPTED = {**TCP, "flags": _abi.REQUIRE_PATH | _abi.ENCRYPT}
MARK = b"nobody else shall read this line, not even once"


def has_tls() -> bool:
    subprocess.run(["modprobe", "tls"], capture_output=True, check=False)
    return "tls" in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()


def needs_tls() -> None:
    if not has_tls():
        pytest.skip("missing-kernel-feature: tls")


@contextlib.contextmanager
def tapped(fields: dict[str, int]) -> Iterator[tuple[Side, Side, Tap]]:
    """Two planes that talk through a tap."""
    with dmaplane.open(plane="embedded") as one, dmaplane.open(plane="embedded") as other:
        near, far, door = Rings(one), Rings(other), Rings(other)
        answer, made = _pair.try_listen(other, door.id, secret=SECRET, fields=fields)
        expect(answer, 0)
        tap = Tap(_pair.text(made.bound_address))
        try:
            with Meanwhile(
                lambda: _pair.try_connect(one, near.id, tap.address, secret=SECRET, fields=fields)
            ) as dialling:
                accepted = _pair.accept(other, made.listener_id, far.id)
                answer, connected = dialling.answer()
            expect(answer, 0)
            yield Side(one, near, connected), Side(other, far, accepted), tap
        finally:
            tap.close()


@pytest.mark.parametrize("fields", [TCP, ENCRYPTED], ids=["clear", "encrypted"])
def test_who_listens_on_the_wire(fields: dict[str, int]) -> None:
    """The tap works: without ENCRYPT it reads the line. With it, it does not, either way."""
    if fields is ENCRYPTED:
        needs_tls()
    with tapped(fields) as (near, far, tap):
        for one, other in ((near, far), (far, near)):
            source, target, back = one.memory(8192), other.memory(8192), one.memory(8192)
            source.bytes[100 : 100 + len(MARK)] = list(MARK)
            remote = one.import_region(other.region(target))
            other.submit(recv(target, 8192))
            assert one.result(send(source, 4096)) == 0
            assert int(other.wait()["result"][0]) == 0
            assert one.result(write(source, remote, 4096, target_offset=3)) == 0
            assert one.result(read(back, remote, 4096, source_offset=3)) == 0
            assert bytes(back.bytes[100 : 100 + len(MARK)]) == MARK
            assert (MARK in tap.heard) == (fields is TCP)
            tap.heard.clear()
        assert SECRET not in tap.heard


def test_encrypted_bytes_are_exact() -> None:
    needs_tls()
    chance = random.Random(61)
    with tapped(ENCRYPTED) as (near, far, _):
        source, target, back = near.memory(2 * MIB), far.memory(2 * MIB), near.memory(2 * MIB)
        source.scramble(1)
        remote = near.import_region(far.region(target))
        for size in (1, 63, 4097, 16384, 16385, 65537, MIB + 3):
            at, to = chance.randrange(999), chance.randrange(999)
            entry = write_imm(source, remote, size, size, source_offset=at, target_offset=to)
            assert near.result(entry) == 0
            assert int(far.event(_abi.EVENT_WRITE_IMM)["immediate"]) == size
            assert (target.bytes[to : to + size] == source.bytes[at : at + size]).all()
            assert near.result(read(back, remote, size, source_offset=to)) == 0
            assert (back.bytes[:size] == source.bytes[at : at + size]).all()
        for n in range(200):
            far.submit(recv(target, 4096, user_data=n))
            size = chance.randint(1, 4096)
            assert near.result(send(source, size, n)) == 0
            assert int(far.wait()["result"][0]) == 0
            assert (target.bytes[:size] == source.bytes[n : n + size]).all()


def test_byte_that_is_changed_on_the_wire_is_noticed() -> None:
    """The connection ends; what it had said was good is good."""
    needs_tls()
    for place in (0, 100, 5000, 300_000):
        with tapped(ENCRYPTED) as (near, far, tap):
            source, target = near.memory(MIB), far.memory(MIB)
            source.scramble(2)
            remote = near.import_region(far.region(target))
            tap.spoil_after = len(tap.heard) + place
            result = near.result(write(source, remote, MIB))
            assert result < 0, "a spoilt transfer completed"
            assert result != -errno.EBADMSG or near.query().state != _abi.STATE_LIVE
            for side in (near, far):
                side.event(_abi.EVENT_ENDPOINT_LOST)


@pytest.mark.parametrize("who", ["connector", "listener"])
def test_one_end_that_wants_it_gets_no_connection_without(who: str) -> None:
    """Neither is talked down to clear text."""
    needs_tls()
    with dmaplane.open(plane="embedded") as one, dmaplane.open(plane="embedded") as other:
        near, far = Rings(one), Rings(other)
        mine, theirs = (ENCRYPTED, TCP) if who == "connector" else (TCP, ENCRYPTED)
        answer, made = _pair.try_listen(other, far.id, secret=SECRET, fields=theirs)
        expect(answer, 0)
        limit = _rig.later(_rig.PATIENCE_S)
        with Meanwhile(
            lambda: _pair.try_accept(other, made.listener_id, far.id, deadline_ns=limit)
        ):
            answer, _ = _pair.try_connect(
                one, near.id, _pair.text(made.bound_address), secret=SECRET, fields=mine
            )
            assert answer < 0, "they talk, and one of them in clear"
            assert answer != -errno.ETIMEDOUT, _rig.name_of(answer)
            assert one.statistics().endpoints == other.statistics().endpoints == 0
            expect(_rig.destroy(other, _abi.LISTENER_DESTROY, made.listener_id), 0)


def test_without_a_secret_there_is_nothing_to_encrypt_with() -> None:
    with dmaplane.open(plane="embedded") as plane, Rings(plane) as rings:
        answer, _ = _pair.try_listen(plane, rings.id, fields=ENCRYPTED)
        assert -answer in (errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP), _rig.name_of(answer)


def test_encryption_that_is_not_there_is_said_so() -> None:
    """Never clear text in its place."""
    if has_tls():
        pytest.skip("not-applicable: this kernel has TLS")
    with dmaplane.open(plane="embedded") as plane, Rings(plane) as rings:
        answer, _ = _pair.try_listen(plane, rings.id, secret=SECRET, fields=ENCRYPTED)
        expect(answer, errno.EOPNOTSUPP)
        answer, _ = _pair.try_connect(
            plane, rings.id, "127.0.0.1:9", secret=SECRET, fields=ENCRYPTED
        )
        expect(answer, errno.EOPNOTSUPP, errno.ECONNREFUSED)
