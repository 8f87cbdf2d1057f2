# SPDX-License-Identifier: MIT
"""The Python package on the kernel plane: how it is chosen, who may, what a fork holds."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import attack
import pytest

import dmaplane
from dmaplane import demo, doctor
from dmaplane.cli import _boards
from dmaplane.testing import _rig

TREE = Path(__file__).resolve().parents[2]
DEVICE = Path("/dev/dmaplane")
NOBODY = 65534
GROUP = 12  # "man": any that nobody here is in
DEBUG = Path("/sys/kernel/debug/dma-api").is_dir()
# A debug kernel is several times slower than an emulated one; its detectors see most in these.
PACKAGE = ("closing",) if DEBUG else ("buffer", "channel", "closing", "asyncio", "processes")


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="kernel") as made:
        yield made


def as_user(body: Callable[[], None], *groups: int) -> None:
    """Runs @body in a child that is nobody, and in these groups; its failure is ours."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups(groups)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@contextlib.contextmanager
def device_of(group: int, mode: int) -> Iterator[None]:
    """As the udev rule would have it, for a while."""
    before = DEVICE.stat()
    os.chown(DEVICE, 0, group)
    DEVICE.chmod(mode)
    try:
        yield
    finally:
        os.chown(DEVICE, before.st_uid, before.st_gid)
        DEVICE.chmod(before.st_mode & 0o777)


def test_auto_is_the_kernel_plane_and_says_why() -> None:
    with dmaplane.open() as plane:
        assert (plane.name, plane.reason) == ("kernel", "/dev/dmaplane is there")
        assert plane.version.startswith("kernel ")
        assert {"local", "peer"} <= set(plane.paths)


def test_who_is_not_in_the_group_gets_the_embedded_plane_and_the_fix() -> None:
    def refused() -> None:
        with pytest.raises(dmaplane.UnsupportedError, match="add yourself to group man"):
            dmaplane.open(plane="kernel")
        with dmaplane.open() as plane:
            assert plane.name == "embedded"
            assert "sudo usermod -aG man nobody" in plane.reason

    def unnamed() -> None:
        with pytest.raises(dmaplane.UnsupportedError, match="install the udev rule"):
            dmaplane.open(plane="kernel")

    with device_of(GROUP, 0o660):
        as_user(refused)
    with device_of(0, 0o600):
        as_user(unnamed)


def test_who_is_in_the_group_needs_no_root() -> None:
    def served() -> None:
        with dmaplane.open() as plane, plane.channel() as channel:
            assert plane.name == "kernel"
            with plane.buffer(1 << 20) as src, plane.buffer(1 << 20) as dst:
                src.numpy()[:] = 7
                assert channel.copy(dst, src).wait(timeout=20).ok
                assert (dst.numpy() == 7).all()

    with device_of(GROUP, 0o660):
        as_user(served, GROUP)


def test_doctor_finds_it_working() -> None:
    report = doctor.examine()
    assert report.plane == "kernel"
    assert report.result("kernel-plane").verdict == "ok"
    assert report.result("kernel-headers").verdict == "ok"


def test_top_shows_it_to_root(plane: dmaplane.Plane) -> None:
    with plane.channel() as channel, plane.buffer(8192):
        for _ in range(5):
            channel.nop().wait(timeout=20)
        (mine,) = [one for one in _boards.samples() if one.incarnation == plane.incarnation]
        assert (mine.plane, mine.pid) == ("kernel", os.getpid())
        now = plane.statistics()
        assert (mine.statistics.completions, mine.statistics.buffers) == (5, 1)
        assert mine.statistics.buffer_bytes == now.buffer_bytes == 8192


def test_demo_keeps_every_promise() -> None:
    outcome = demo.run(plane="kernel", length_bytes=16 << 20)
    assert outcome.plane == "kernel"
    assert [step for step in outcome.checks if not step.passed] == []


def test_write_combined_and_coherent_buffers_from_python(plane: dmaplane.Plane) -> None:
    with plane.channel() as channel:
        for made in (
            plane.buffer(70_000, write_combine=True),
            plane.buffer(70_000, kind="coherent"),
        ):
            with made, plane.buffer(70_000) as other:
                made.numpy()[:] = 3
                channel.copy(other, made).wait(timeout=20)
                assert (other.numpy() == 3).all()
                assert not made.revoked


def test_forked_child_that_still_shows_a_buffer_holds_it(plane: dmaplane.Plane) -> None:
    """It cannot use the plane, and what it inherited is a mapping like any other (L3)."""
    buffer = plane.buffer(8192)
    view = buffer.numpy()
    view[:] = 5
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0 if plane.closed else 1)
    del view
    assert buffer.holders.mappings == 1
    with pytest.raises(dmaplane.BusyError, match="1 mapping"):
        buffer.destroy()
    os.close(theirs)
    os.close(ours)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    _rig.wait_until(lambda: not buffer.holders, _rig.SECOND, "the child's mapping is gone")
    buffer.destroy()


@pytest.mark.parametrize("name", PACKAGE)
def test_the_tests_of_the_package_pass_on_it(name: str) -> None:
    """All but those that import torch, which takes minutes in an emulated machine."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=/run/again"]
    done = subprocess.run(
        [sys.executable, *words, "-k", "not tensor", f"tests/python/test_{name}.py"],
        cwd=TREE,
        env={**os.environ, "DMAPLANE_TEST_PLANE": "kernel"},
        capture_output=True,
        text=True,
        timeout=attack.CHILD_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("path", sorted((TREE / "examples").glob("*.py")), ids=lambda one: one.stem)
def test_example_runs_on_it(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
