# SPDX-License-Identifier: MIT
"""The two ends of the talk with a machine of a pair, without a machine between them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools/vm")]

import agent  # noqa: E402 (the harness is not a package)
import kernels  # noqa: E402
import kmsg  # noqa: E402
import machine  # noqa: E402
import node  # noqa: E402

PATIENCE_S = 20.0


class Quiet:
    """A kernel's log that says one thing."""

    def lines(self) -> list[str]:
        return ["fine", "WARNING: at a.c:1"]


@pytest.fixture
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[node.Node]:
    """A node whose agent is a child of this process; `boot` has been done, so to speak."""
    monkeypatch.setattr(kmsg, "Reader", Quiet)
    monkeypatch.setattr(kmsg, "taint", lambda: 0)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            agent.Agent(theirs.fileno()).run()
        finally:
            os._exit(0)
    theirs.close()
    kernel = kernels.Kernel("any", "0", tmp_path, tmp_path, tmp_path)
    made = node.Node(machine.Machine(kernel), tmp_path, 1, PATIENCE_S)
    made._control = node.Wire(ours)
    assert made.answer() == "hello"
    yield made
    ours.close()
    os.waitpid(pid, 0)


def test_lines_go_both_ways_and_the_status_is_the_last_word(near: node.Node) -> None:
    program = near.start("sh", "-c", "echo ready; read word; echo got $word; printf rest; exit 7")
    assert program.line(PATIENCE_S) == "ready"
    program.tell("this")
    assert program.wait(PATIENCE_S) == 7
    assert list(program.lines) == ["got this", "rest"]
    program.lines.clear()
    with pytest.raises(node.SilentError, match="ended with 7"):
        program.line(PATIENCE_S)


def test_programs_run_at_once_and_each_has_its_own_lines(near: node.Node) -> None:
    both = [near.start("sh", "-c", f"read word; echo {n} $word; cat") for n in range(2)]
    for n, program in reversed(list(enumerate(both))):
        program.tell("hello")
        assert program.line(PATIENCE_S) == f"{n} hello"
    both[0].kill(PATIENCE_S)
    assert both[0].status == -signal.SIGKILL
    assert both[1].status is None
    near.end_programs()
    assert both[1].status == -signal.SIGKILL


def test_silence_has_an_end(near: node.Node) -> None:
    program = near.start("sleep", "1000")
    started = time.monotonic()
    with pytest.raises(node.SilentError):
        program.line(0.2)
    assert time.monotonic() - started < PATIENCE_S
    near.end_programs()


def test_a_script_that_fails_is_told_with_what_it_said(near: node.Node) -> None:
    assert near.run("sh", "-c", "echo a; echo b >&2; exit 3") == (3, "a\nb")
    with pytest.raises(AssertionError, match="3: why"):
        near.shell("echo why; exit 3")


def test_a_function_runs_in_a_fork(near: node.Node) -> None:
    near.order("load", module="os", paths=[])
    program = near.fork("os", "system", command="echo from a fork; read word; echo $word")
    program.tell("and back")
    assert program.wait(PATIENCE_S) == 0
    assert list(program.lines) == ["from a fork", "and back"]
    assert near.fork("os", "system", no_such="argument").wait(PATIENCE_S) == 1
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        near.order("load", module="no_such_module", paths=[])
    assert near.run("true") == (0, "")


def test_complaints_are_passed_on(near: node.Node) -> None:
    assert near.complaints() == ["WARNING: at a.c:1"]


def test_a_machine_that_goes_is_no_silence(near: node.Node, tmp_path: Path) -> None:
    (tmp_path / "serial.log").write_text("[ 9.0] Kernel panic - not syncing: Fatal exception\n")
    with pytest.raises(node.GoneError, match="panic"):
        near.start("sh", "-c", "kill -9 $PPID").wait(PATIENCE_S)
