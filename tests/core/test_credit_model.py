# SPDX-License-Identifier: MIT
"""The credit ledger against a model of plain counters, any amounts in any order (law L2).

test_credit.c walks every order of operations on windows of up to three equal messages. Here
Hypothesis picks windows and message sizes, delivers grants late, twice or never, and shrinks what
fails. core/credit.c is compiled into a shared library in a temporary directory.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CC", "gcc")
EPOCH = 7
ESTALE, EAGAIN = 116, 11

if shutil.which(COMPILER) is None:
    pytest.skip(f"no C compiler: {COMPILER} is not on the path", allow_module_level=True)


class Amount(ctypes.Structure):
    _fields_ = [("slots", ctypes.c_uint64), ("bytes", ctypes.c_uint64)]


class Ledger(ctypes.Structure):
    _fields_ = [
        ("granted", Amount),
        ("available", Amount),
        ("in_flight", Amount),
        ("completed", Amount),
        ("sequence", ctypes.c_uint64),
        ("epoch", ctypes.c_uint32),
    ]


class Sender(ctypes.Structure):
    _fields_ = [
        ("ledger", Ledger),
        ("stalls", ctypes.c_uint64),
        ("stall_ns", ctypes.c_uint64),
        ("stalled_since_ns", ctypes.c_uint64),
        ("stalled", ctypes.c_bool),
    ]


class Receiver(ctypes.Structure):
    _fields_ = [
        ("ledger", Ledger),
        ("window", Amount),
        ("low", Amount),
        ("high", Amount),
        ("flush", ctypes.c_bool),
    ]


class Grant(ctypes.Structure):
    _fields_ = [("total", Amount), ("sequence", ctypes.c_uint64), ("epoch", ctypes.c_uint32)]


def load() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "credit.so"
        command = [COMPILER, "-std=gnu11", "-O1", "-shared", "-fPIC"]
        command += [f"-I{ROOT / 'include/uapi'}", f"-I{ROOT / 'core'}"]
        command += [str(ROOT / "core/credit.c"), "-o", str(target)]
        subprocess.run(command, check=True, timeout=60)
        library = ctypes.CDLL(str(target))
    for name in ("take", "return", "complete", "arrive", "release"):
        getattr(library, f"dmp_credit_{name}").argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    library.dmp_credit_receiver_init.argtypes = [ctypes.c_void_p, ctypes.c_uint32, Amount]
    library.dmp_credit_due.restype = ctypes.c_bool
    library.dmp_credit_untold.restype = Amount
    return library


LIBRARY = load()


class Ledgers(RuleBasedStateMachine):
    """A sender and a receiver; `heard` and `told` are all the model has."""

    @initialize(slots=st.integers(1, 9), size=st.integers(1, 10_000))
    def begin(self, slots: int, size: int) -> None:
        self.window = Amount(slots, size)
        self.sender, self.receiver = Sender(), Receiver()
        LIBRARY.dmp_credit_sender_init(ctypes.byref(self.sender), EPOCH)
        assert not LIBRARY.dmp_credit_receiver_init(ctypes.byref(self.receiver), EPOCH, self.window)
        self.told: list[Grant] = []
        self.heard = (0, 0)
        self.taken: list[int] = []
        self.occupied: list[int] = []
        self.unanswered: list[int] = []
        self.spent = [0, 0]

    @rule()
    def tell(self) -> None:
        grant = Grant()
        LIBRARY.dmp_credit_tell(ctypes.byref(self.receiver), ctypes.byref(grant))
        self.told.append(grant)
        assert not LIBRARY.dmp_credit_due(ctypes.byref(self.receiver))

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def hear_any_grant_ever_told(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.told))
        assert not LIBRARY.dmp_credit_hear(ctypes.byref(self.sender), ctypes.byref(grant))
        self.heard = max(self.heard, (grant.total.slots, grant.total.bytes))

    @rule(epoch=st.integers(0, 2**32 - 1).filter(lambda epoch: epoch != EPOCH))
    def hear_of_another_epoch(self, epoch: int) -> None:
        grant = Grant(Amount(2**40, 2**40), 2**40, epoch)
        result = LIBRARY.dmp_credit_hear(ctypes.byref(self.sender), ctypes.byref(grant))
        assert result == -ESTALE

    @rule(size=st.integers(0, 10_000))
    def take(self, size: int) -> None:
        result = LIBRARY.dmp_credit_take(ctypes.byref(self.sender), size)
        may = self.spent[0] < self.heard[0] and self.spent[1] + size <= self.heard[1]
        assert result == (0 if may else -EAGAIN)
        if may:
            self.taken.append(size)
            self.spent[0] += 1
            self.spent[1] += size

    @precondition(lambda self: self.taken)
    @rule()
    def give_back_what_never_left(self) -> None:
        size = self.taken.pop()
        assert not LIBRARY.dmp_credit_return(ctypes.byref(self.sender), size)
        self.spent[0] -= 1
        self.spent[1] -= size

    @precondition(lambda self: self.taken)
    @rule()
    def arrive(self) -> None:
        size = self.taken.pop(0)
        assert not LIBRARY.dmp_credit_arrive(ctypes.byref(self.receiver), size)
        self.occupied.append(size)
        self.unanswered.append(size)

    @precondition(lambda self: self.occupied)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        size = self.occupied.pop(data.draw(st.integers(0, len(self.occupied) - 1)))
        assert not LIBRARY.dmp_credit_release(ctypes.byref(self.receiver), size)

    @precondition(lambda self: self.unanswered)
    @rule()
    def answer(self) -> None:
        size = self.unanswered.pop(0)
        assert not LIBRARY.dmp_credit_complete(ctypes.byref(self.sender), size)

    @rule()
    def flush_makes_any_room_due(self) -> None:
        LIBRARY.dmp_credit_flush(ctypes.byref(self.receiver))
        untold = LIBRARY.dmp_credit_untold(ctypes.byref(self.receiver))
        due = LIBRARY.dmp_credit_due(ctypes.byref(self.receiver))
        assert due == bool(untold.slots or untold.bytes)

    @invariant()
    def ledgers_agree_with_the_model(self) -> None:
        if not hasattr(self, "told"):
            return
        for ledger in (self.sender.ledger, self.receiver.ledger):
            assert not LIBRARY.dmp_credit_check(ctypes.byref(ledger))
        sender, receiver = self.sender.ledger, self.receiver.ledger
        assert (sender.granted.slots, sender.granted.bytes) == self.heard
        assert sender.in_flight.slots == len(self.taken) + len(self.unanswered)
        assert sender.in_flight.bytes == sum(self.taken) + sum(self.unanswered)
        assert receiver.in_flight.slots == len(self.occupied) <= self.window.slots
        assert receiver.in_flight.bytes == sum(self.occupied) <= self.window.bytes
        assert receiver.granted.bytes - receiver.completed.bytes <= self.window.bytes


Ledgers.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestLedgers = Ledgers.TestCase
