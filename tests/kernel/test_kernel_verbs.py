# SPDX-License-Identifier: MIT
"""Endpoints of the kernel plane over Soft-RoCE: with each other, and with embedded planes."""

from __future__ import annotations

import errno
import functools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import attack
import pytest
import soft_roce

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _pair, _rig
from dmaplane.testing._rig import MIB, Rings

TREE = Path(__file__).resolve().parents[2]
HERE = f"{soft_roce.ADDRESS}:0"
GREETING = ("connecting", "messages", "spinning", "strangers")
TOUCHING = ("remote", "regions")
GRANTING = ("credits", "revoking")
ENDING = ("interrupting", "loss")
RUNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("kernel", GREETING),
    ("kernel", TOUCHING),
    ("kernel", GRANTING),
    ("kernel", ENDING),
    ("kernel,embedded", GREETING),
    ("kernel,embedded", TOUCHING),
    ("embedded,kernel", GRANTING),
    ("embedded,kernel", ENDING),
)
"""Planes of a case, by turns, and groups of cases."""

if attack.IS_DEBUG:
    # A MiB a second where every access to memory is checked, in emulation: no large transfers.
    RUNS = (("kernel", ("connecting", "messages", "spinning", "regions", "credits")),)


@pytest.fixture(scope="module")
def rxe(rxe: None) -> None:
    """The device, and a module that connects over it."""
    with dmaplane.open(plane="kernel") as plane:
        claimed = dmaplane.Capability.ENDPOINT in plane.capabilities
    if not claimed and "hmac(sha256)" not in Path("/proc/crypto").read_text():
        pytest.skip("missing-kernel-feature: CONFIG_CRYPTO_HMAC")
    assert claimed, "there is a device, and no endpoint is claimed"


@pytest.mark.parametrize(
    ("planes", "groups"), RUNS, ids=[f"{planes}-{'+'.join(groups)}" for planes, groups in RUNS]
)
def test_conformance(clean: None, planes: str, groups: tuple[str, ...]) -> None:
    program = TREE / "tests/kernel/verbs_conformance.py"
    done = subprocess.run(
        [sys.executable, program, "--planes", planes, *groups],
        env={
            **os.environ,
            "DMAPLANE_CONFORMANCE_ADDRESS": f"{soft_roce.ADDRESS}:0",
            # Two stacks of Soft-RoCE and both planes share the machine.
            _rig.SLOWNESS_VARIABLE: str(max(2.0, _rig.SLOWNESS)),
        },
        capture_output=True,
        text=True,
        timeout=attack.CHILD_S,
        check=False,
    )
    said = done.stdout[-8000:] + done.stderr[-2000:]
    assert done.returncode == 0, said
    assert re.search(r"^[1-9]\d* passed, 0 failed$", done.stdout, re.MULTILINE), said


class Peer:
    """verbs_peer.py, connected; killed at the end of the block."""

    def __init__(self, plane: dmaplane.Plane, kind: str) -> None:
        program = TREE / "tests/kernel/verbs_peer.py"
        self.process = subprocess.Popen(
            [sys.executable, program, f"{soft_roce.ADDRESS}:0", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        rings = Rings(plane, slots=64)
        answer, made = _pair.try_connect(
            plane, rings.id, self.said(), path="verbs", secret=b"peer", fields={"user_data": 77}
        )
        assert answer == 0, answer
        self.side = _pair.Side(plane, rings, made)
        self.memory = self.side.memory(4 * MIB, fill=5)
        key = bytes.fromhex(self.said())
        region = self.side.region(self.memory)
        self.process.stdin.write(_pair.key_of(region).hex() + "\n")
        self.process.stdin.flush()
        answer, imported = self.side.try_import(key)
        assert answer == 0, answer
        self.remote = imported.region_id
        assert self.said() == "busy"

    def said(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the peer has ended"
        return line

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def charged() -> str:
    """What all planes together have of the module's memory."""
    text = Path("/sys/kernel/debug/dmaplane/memory").read_text()
    found: list[str] = re.findall(r"memories=\d+ charged_bytes=\d+", text)
    return found[0]


def planes() -> int:
    """Planes of the module that are open."""
    return len(Path("/sys/kernel/debug/dmaplane/planes").read_text().splitlines())


@pytest.mark.parametrize("kind", ["kernel", "embedded"])
def test_killed_peer_is_lost_and_leaves_nothing(clean: None, kind: str) -> None:
    """L1, L4: what is under way on either side ends, and the one who lives goes on."""
    chance = random.Random(int(os.environ.get("DMAPLANE_SEED", "5")))
    before = charged()
    for _ in range(3):
        with dmaplane.open(plane="kernel") as plane:
            peer = Peer(plane, kind)
            side, memory, remote = peer.side, peer.memory, peer.remote
            side.submit(
                *(_pair.write(memory, remote, MIB, user_data=n) for n in range(8)),
                *(_pair.read(memory, remote, MIB, user_data=8 + n) for n in range(8)),
                _pair.send(memory, 65536, user_data=16),
                _pair.recv(memory, 64, user_data=17),
            )
            time.sleep(chance.random() * 0.5)
            peer.kill()
            results = _rig.results(side.wait(18))
            assert set(results) == set(range(18))
            assert set(results.values()) <= {0, -errno.ECONNRESET}, results
            assert results[17] == -errno.ECONNRESET
            assert int(side.event(_abi.EVENT_ENDPOINT_LOST)["user_data"]) == 77
            _rig.wait_until(lambda: planes() == 1, 10.0, "the killed process's plane is gone")
            listed = Path("/sys/kernel/debug/dmaplane/objects").read_text()
            assert re.search(r"type=endpoint .* peer=10\.77\.0\.1:\d+ ", listed), listed
    _rig.wait_until(lambda: charged() == before, 10.0, "what was charged is given back")


@pytest.mark.timeout(600)
def test_a_user_without_rights_attacks_where_there_is_a_device(
    clean: None, program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """L12: random commands that reach it, from one thread, and from several that are killed."""
    monkeypatch.setenv("DMAPLANE_FUZZ_HOST", soft_roce.ADDRESS)
    before = charged()
    said = attack.run(
        program("fuzz"),
        *("--seed", attack.seed(), "--commands", 20000 // attack.SLOWNESS, "--ring-writes", 2000),
    )
    assert "nothing is left" in said
    with attack.open_to_group(attack.NOBODY):
        attack.run(
            program("random"),
            *("--seed", attack.seed(), "--seconds", 20, "--group", attack.NOBODY),
            *("--within-ms", 5000 * attack.SLOWNESS),
        )
    _rig.wait_until(lambda: charged() == before, 10.0, "what was charged is given back")


@pytest.mark.parametrize("spin_us", [0, 2000])
def test_a_deadline_is_met_where_nothing_else_happens(clean: None, spin_us: int) -> None:
    """L1. Who waits sets the timer, and the worker sleeps: the next PING is minutes away."""
    with dmaplane.open(plane="kernel") as one, dmaplane.open(plane="kernel") as other:
        spin = {"flags": _abi.CHANNEL_SPIN, "spin_us": spin_us} if spin_us else {}
        near, far = Rings(one, **spin), Rings(other)
        side, _ = _pair.join((one, near), (other, far), "verbs", address=HERE, secret=b"peer")
        memory = side.memory(4096)
        for _ in range(3):
            time.sleep(0.1)
            entry = _pair.recv(memory, 64, endpoint_id=side.endpoint, deadline_ns=_rig.later(0.02))
            near.put(_rig.rows_of(entry))
            near.enter(1, 1)
            assert _rig.results(near.take_exactly(1)) == {1: -errno.ETIMEDOUT}


def test_a_channel_is_destroyed_while_its_plane_waits_for_callers(clean: None) -> None:
    """L4: ACCEPT waits for somebody to call, for ever, and keeps nobody else."""
    with dmaplane.open(plane="kernel") as plane:
        door, rings = Rings(plane), Rings(plane)
        listener, _ = _pair.listen(plane, door.id, HERE, path="verbs", secret=b"peer")
        with _pair.Meanwhile(
            lambda: _pair.try_accept(plane, listener, rings.id, deadline_ns=0)
        ) as accepting:
            time.sleep(0.2)
            with _pair.Meanwhile(rings.close) as closing:
                closing.answer()
            _rig.expect(_rig.destroy(plane, _abi.LISTENER_DESTROY, listener), 0)
            assert accepting.answer()[0] == -errno.ESTALE


def take_back(at_once: threading.Barrier, side: _pair.Side, region: int) -> int:
    """Ends a region of @side's at the moment others begin, too."""
    at_once.wait(_rig.PATIENCE_S)
    return side.destroy_region(region, drain_until=_rig.later())


def test_both_sides_take_back_more_than_there_are_slots(clean: None) -> None:
    """L1: REVOKEs of one side fill its slots, and do not keep those of the other from being obeyed.

    Nor do they hold up what else goes over the connection, a question that is asked meanwhile
    included.
    """
    with dmaplane.open(plane="kernel") as one, dmaplane.open(plane="kernel") as other:
        near, far = _pair.join(
            (one, Rings(one)), (other, Rings(other)), "verbs", address=HERE, secret=b"peer"
        )
        # In parts of 2 MiB, and there are 32 slots.
        large = {side: side.memory(96 * MIB) for side in (near, far)}
        words = {side: side.memory(4096) for side in (near, far)}
        for turn in range(2 if attack.IS_DEBUG else 8):
            made = {side: side.region(memory) for side, memory in large.items()}
            small = far.region(words[far])
            remotes = {near: near.import_region(made[far]), far: far.import_region(made[near])}
            at_once = threading.Barrier(3)
            with (
                _pair.Meanwhile(
                    functools.partial(take_back, at_once, near, made[near].region_id)
                ) as here,
                _pair.Meanwhile(
                    functools.partial(take_back, at_once, far, made[far].region_id)
                ) as there,
            ):
                at_once.wait(_rig.PATIENCE_S)
                with _pair.Meanwhile(
                    functools.partial(near.try_import, _pair.key_of(small))
                ) as importing:
                    answer, asked = importing.answer()
                assert (here.answer(), there.answer(), answer) == (0, 0, 0), turn
            for side, remote in remotes.items():
                assert side.result(_pair.write(large[side], remote, 4096)) == -errno.ESTALE
                _rig.expect(side.destroy_region(remote), 0)
            _rig.expect(near.destroy_region(asked.region_id), 0)
            far.revoke(small)
            for one_side, other_side in ((near, far), (far, near)):
                other_side.submit(_pair.recv(words[other_side], 64, user_data=turn))
                assert one_side.result(_pair.send(words[one_side], 64)) == 0
                assert int(other_side.wait_for(turn)["result"]) == 0


def test_an_endpoint_is_destroyed_while_its_channel_goes(clean: None) -> None:
    """And while a region is imported on it: one of them is first, and nothing is left over."""
    before = charged()
    for turn in range(8 if attack.IS_DEBUG else 40):
        with dmaplane.open(plane="kernel") as one, dmaplane.open(plane="kernel") as other:
            near, far = Rings(one), Rings(other)
            side, peer = _pair.join(
                (one, near), (other, far), "verbs", address=HERE, secret=b"peer"
            )
            key = _pair.key_of(peer.region(peer.memory(4096)))
            pause = turn % 5 * 0.002

            def end_endpoint(side: _pair.Side = side, pause: float = pause) -> int:
                time.sleep(pause)
                return side.destroy(drain_until=_rig.later())

            with (
                _pair.Meanwhile(functools.partial(side.try_import, key)) as importing,
                _pair.Meanwhile(near.close if turn % 2 else end_endpoint) as first,
                _pair.Meanwhile(end_endpoint) as second,
            ):
                answer, imported = importing.answer()
                _rig.expect(answer, 0, errno.ECONNRESET, errno.ESTALE, errno.ENOENT)
                if answer == 0:
                    _rig.expect(side.destroy_region(imported.region_id), 0)
                first.answer()
                _rig.expect(second.answer(), 0, errno.ENOENT)
    _rig.wait_until(lambda: charged() == before, 10.0, "what was charged is given back")


def test_a_killed_importer_is_gone_at_once(clean: None) -> None:
    """L4: its peer is stopped, and would be given half an hour to answer."""
    program = TREE / "tests/kernel/verbs_peer.py"
    peer = subprocess.Popen(
        [sys.executable, program, HERE, "embedded"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert peer.stdout is not None
    address = peer.stdout.readline().strip()

    def body(parent: socket.socket) -> None:
        plane = dmaplane.open(plane="kernel")
        rings = Rings(plane)
        answer, made = _pair.try_connect(plane, rings.id, address, path="verbs", secret=b"peer")
        assert answer == 0, answer
        side = _pair.Side(plane, rings, made)
        parent.sendall(b"connected")
        key = parent.recv(512)
        parent.sendall(b"asking")
        parent.sendall(f"!answered {side.try_import(key)[0]}".encode())

    try:
        with _rig.Child(body) as child:
            assert child.hear() == b"connected"
            key = bytes.fromhex(peer.stdout.readline().strip())
            os.kill(peer.pid, signal.SIGSTOP)
            child.socket.sendall(key)
            assert child.hear() == b"asking"
            time.sleep(0.5)
            assert planes() == 1
            began = time.monotonic()
            child.kill()
            took = time.monotonic() - began
            assert took < 5 * _rig.SECOND, f"it was gone after {took:.1f} s"
            _rig.wait_until(lambda: planes() == 0, 5 * _rig.SECOND, "its plane is gone")
    finally:
        peer.kill()
        peer.wait(60)
        for pipe in (peer.stdin, peer.stdout):
            assert pipe is not None
            pipe.close()
