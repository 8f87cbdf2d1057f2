# SPDX-License-Identifier: MIT
"""Top sees planes of other processes, and they vanish with them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import dmaplane
from dmaplane.cli import _boards, top

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Commands

BUSY = """
import dmaplane
with dmaplane.open(plane="embedded") as plane, plane.channel() as channel:
    source, target = plane.buffer(1 << 20), plane.buffer(1 << 20)
    channel.copy(target, source).wait()
    print("ready", flush=True)
    while True:
        channel.copy(target, source).wait()
"""


@contextlib.contextmanager
def busy_process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


def of_process(pid: int) -> list[_boards.Sample]:
    return [sample for sample in _boards.samples() if sample.pid == pid]


def test_sees_another_process_and_its_rates(dmaplane_command: Commands) -> None:
    with busy_process() as child:
        answer = dmaplane_command("top", "--once", "--json", "--interval", "0.3")
        assert answer.code == 0
        (plane,) = [row for row in answer.json["planes"] if row["pid"] == child.pid]
        assert plane["statistics"]["buffers"] == 2
        assert plane["statistics"]["buffer_bytes"] == 2 << 20
        assert plane["rates"]["bytes_per_s"] > 0
        assert plane["rates"]["completions_per_s"] > 0
        assert plane["age_s"] > 0
        assert "python" in plane["command"]
        shown = dmaplane_command("top", "--once", "--interval", "0.2")
        assert str(child.pid) in shown.out
        assert len(shown.widest()) <= 80


def test_vanishes_with_kill_9() -> None:
    with busy_process() as child:
        assert len(of_process(child.pid)) == 1
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert of_process(child.pid) == []


def test_counters_are_those_of_the_plane() -> None:
    known = {sample.incarnation for sample in _boards.samples()}
    with dmaplane.open(plane="embedded") as plane, plane.channel() as channel:
        for _ in range(10):
            channel.nop().wait()
        (mine,) = [s for s in of_process(os.getpid()) if s.incarnation not in known]
        assert mine.incarnation == plane.incarnation
        assert mine.statistics.completions == 10
        assert mine.statistics.channels == 1
        assert 0 <= mine.age_s < 60
    assert [s for s in of_process(os.getpid()) if s.incarnation not in known] == []


def test_two_planes_of_one_process_are_two_rows() -> None:
    before = len(of_process(os.getpid()))
    with dmaplane.open(plane="embedded"), dmaplane.open(plane="embedded"):
        assert len(of_process(os.getpid())) == before + 2


def test_a_forked_child_is_not_taken_for_the_owner() -> None:
    with dmaplane.open(plane="embedded") as plane:
        time.sleep(0.05)  # process start times have steps of 10 ms
        reader, writer = os.pipe()
        forked = os.fork()
        if forked == 0:
            os.read(reader, 1)
            os._exit(0)
        try:
            owners = [s.pid for s in _boards.samples() if s.incarnation == plane.incarnation]
            assert owners == [os.getpid()]
        finally:
            os.write(writer, b"x")
            os.waitpid(forked, 0)
            os.close(reader)
            os.close(writer)


def test_rubbish_of_the_right_name_is_ignored() -> None:
    before = len(_boards.samples())
    empty = os.memfd_create("dmaplane-board")
    rubbish = os.memfd_create("dmaplane-board")
    os.write(rubbish, b"\xff" * 4096)
    try:
        assert len(_boards.samples()) == before
    finally:
        os.close(empty)
        os.close(rubbish)


def test_long_commands_are_cut_and_figures_are_not() -> None:
    from rich.console import Console

    with dmaplane.open(plane="embedded") as plane, plane.buffer(1 << 20):
        (sample,) = [s for s in of_process(os.getpid()) if s.incarnation == plane.incarnation]
    long = dataclasses.replace(sample, pid=4194304, command="x" * 10000)
    console = Console(width=80)
    with console.capture() as shown:
        console.print(top._table([sample], [long], 80))
    text = shown.get()
    assert max(map(len, text.splitlines())) <= 80
    assert "4194304" in text
    assert "1 MiB" in text
    assert "x…" in text


def test_nothing_open_is_said() -> None:
    assert top._table([], [], 80).caption == "no plane is open in the processes of this user"


def test_rates_of_a_first_sample_are_zero() -> None:
    with dmaplane.open(plane="embedded") as plane:
        (sample,) = [s for s in of_process(os.getpid()) if s.incarnation == plane.incarnation]
    assert _boards.rates(None, sample).bytes_per_s == 0.0
    assert _boards.rates(sample, sample).bytes_per_s == 0.0


MODULE_PLANES = """\
plane=00000000000000ab owner={mine} buffers=2 bytes=8192 channels=1 mappings=3 submissions=10 \
completions=9 errors=1 cancelled=0 timeouts=0 moved=777 checksummed=5 batches=4 wakeups=2 events=1
plane=00000000000000cd owner={nobody} buffers=0 bytes=0 channels=0 mappings=0 submissions=0 \
completions=0 errors=0 cancelled=0 timeouts=0 moved=0 checksummed=0 batches=0 wakeups=0 events=0
"""


def test_planes_of_the_module_are_read_from_its_list(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "planes"
    listed.write_text(MODULE_PLANES.format(mine=os.getpid(), nobody=2**22 + 1))
    monkeypatch.setattr(_boards, "KERNEL_PLANES", str(listed))
    (mine,) = [sample for sample in _boards.samples() if sample.plane == "kernel"]
    assert (mine.pid, mine.incarnation, mine.age_s) == (os.getpid(), 0xAB, None)
    counted = mine.statistics
    assert (counted.buffers, counted.buffer_bytes, counted.mappings) == (2, 8192, 3)
    assert (counted.bytes, counted.checksum_bytes, counted.in_flight) == (777, 5, 1)
    other = [sample.pid for sample in _boards.samples(everyone=True) if sample.plane == "kernel"]
    assert other == [os.getpid(), 2**22 + 1]
    row = top._answer([], [mine], 1.0)["planes"][0]
    assert (row["plane"], row["age_s"]) == ("kernel", None)


def test_no_module_and_no_right_are_no_planes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_boards, "KERNEL_PLANES", str(tmp_path / "nothing"))
    assert all(sample.plane == "embedded" for sample in _boards.samples())
