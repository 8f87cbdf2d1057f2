# SPDX-License-Identifier: MIT
"""The kernel plane's class where there is no module: what it says, maps, waits for and leaves.

The device is a file, a FIFO or nothing here, and QUERY is answered by the test. What the
module does is tested in a virtual machine (tests/kernel).
"""

from __future__ import annotations

import ctypes
import errno
import os
import pathlib
import re
import signal
import threading
import time
import warnings
from typing import Any

import pytest

import dmaplane
from dmaplane import _kernel, _open, abi
from dmaplane._kernel import KernelPlane


class OverFile(KernelPlane):
    """A kernel plane whose device is something else; it knows QUERY and nothing more."""

    def _command(self, number: int, struct: Any) -> int:
        if number != abi.QUERY:
            return super()._command(number, struct)
        struct.abi_major, struct.abi_minor = abi.ABI_MAJOR, abi.ABI_MINOR
        struct.fabrics = 1 << abi.PATH_LOCAL
        return 0


class OfAnotherAge(KernelPlane):
    def _command(self, number: int, struct: Any) -> int:
        struct.abi_major = abi.ABI_MAJOR + 1
        return 0


@pytest.fixture
def device(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A path that is taken for /dev/dmaplane; nothing is there yet."""
    path = tmp_path / "dmaplane"
    monkeypatch.setattr(_kernel, "DEVICE_PATH", str(path))
    monkeypatch.setattr(_open, "DEVICE_PATH", str(path))
    return path


def _fds() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_no_device_says_how_to_get_one(device: pathlib.Path) -> None:
    with pytest.raises(dmaplane.UnsupportedError, match="modprobe dmaplane") as caught:
        dmaplane.open(plane="kernel")
    assert caught.value.feature == "the kernel plane"
    with dmaplane.open() as plane:
        assert plane.name == "embedded"
        assert plane.reason == f"no kernel plane: {device} does not exist"


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENXIO, "modprobe dmaplane"),
        (errno.ENODEV, "modprobe dmaplane"),
        (errno.EACCES, r"sudo usermod -aG \w+ \S+"),
        (errno.EPERM, "--device"),
    ],
)
def test_device_that_cannot_be_opened_says_why(
    device: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int, fix: str
) -> None:
    device.write_bytes(b"")
    monkeypatch.setattr(_kernel, "_group", lambda: "dmaplane")
    real = os.open

    def refused(path: Any, *words: Any, **more: Any) -> int:
        if str(path) == str(device):
            raise OSError(number, os.strerror(number))
        return real(path, *words, **more)

    monkeypatch.setattr(_kernel.os, "open", refused)
    with pytest.raises(dmaplane.UnsupportedError) as caught:
        dmaplane.open(plane="kernel")
    assert re.search(fix, caught.value.needs)
    assert caught.value.errno == number
    with dmaplane.open() as plane:
        assert plane.name == "embedded"
        assert re.search(fix, plane.reason)
        assert plane.reason.startswith("no kernel plane: ")


def test_device_of_no_group_names_the_rule(
    device: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.write_bytes(b"")
    os.chmod(device, 0o600)
    assert "udev rule" in (_kernel._needs(errno.EACCES) or "")


def test_what_has_nothing_to_do_with_the_module_is_itself(
    device: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.mkdir()
    with pytest.raises(dmaplane.SystemCallError) as caught:
        dmaplane.open(plane="kernel")
    assert caught.value.errno == errno.EISDIR


def test_a_device_that_is_not_ours_is_refused_and_let_go(device: pathlib.Path) -> None:
    device.write_bytes(b"")
    with dmaplane.open(plane="embedded"):
        pass
    before = _fds()
    with pytest.raises(dmaplane.UnsupportedError, match="does not know the command"):
        dmaplane.open(plane="kernel")
    with dmaplane.open() as plane:
        assert plane.name == "embedded"
    assert _fds() == before


def test_another_abi_is_refused_and_auto_says_so(
    device: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.write_bytes(b"")
    monkeypatch.setattr(_open, "KernelPlane", OfAnotherAge)
    before = _fds()
    with pytest.raises(dmaplane.UnsupportedError, match=f"ABI {abi.ABI_MAJOR + 1}"):
        dmaplane.open(plane="kernel")
    assert _fds() == before
    with dmaplane.open() as plane:
        assert plane.name == "embedded"
        assert "a dmaplane package for that version" in plane.reason


def _mapped(device: pathlib.Path) -> int:
    return pathlib.Path("/proc/self/maps").read_text().count(str(device))


def test_mappings_are_known_and_end_with_the_plane(device: pathlib.Path) -> None:
    device.write_bytes(bytes(16384))
    with OverFile("a test") as plane:
        first, second = (plane._map(8192, 3, 4096) for _ in range(2))
        assert first > 0
        assert second > 0
        ctypes.memset(first, 7, 8192)
        assert _mapped(device) >= 1
        assert plane._unmap(first + 4096, 4096) == -errno.EINVAL
        assert plane._unmap(1 << 40, 4096) == -errno.EINVAL
        assert plane._unmap(first, 8192) == 0
        assert plane._unmap(first, 8192) == -errno.EINVAL
        assert plane._map(0, 3, 0) == -errno.EINVAL
        assert plane._map(4096, 3, 1) == -errno.EINVAL
        assert plane._map(1 << 60, 3, 0) == -errno.ENOMEM
    assert _mapped(device) == 0
    assert device.read_bytes()[4096:12288] == b"\7" * 8192


def test_descriptor_is_closed_on_exec(device: pathlib.Path) -> None:
    device.write_bytes(b"")
    with OverFile("a test") as plane:
        assert not os.get_inheritable(plane._fd)


def test_waiting_honours_data_deadlines_and_signals(device: pathlib.Path) -> None:
    os.mkfifo(device)
    with OverFile("a test") as plane:
        assert plane._poll(1) == 0
        started = time.monotonic()
        assert plane._poll(time.monotonic_ns() + 30_000_000) == 0
        assert 0.03 <= time.monotonic() - started < 5
        assert plane.wait(timeout=0.01) is False
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            assert plane._poll(0) == -errno.EINTR
            timer.join()
        finally:
            signal.signal(signal.SIGUSR1, before)
        os.write(plane._fd, b"x")
        assert plane._poll(0) == 1
        assert plane.wait() is True


def test_forked_child_lets_go_of_the_descriptor(device: pathlib.Path) -> None:
    device.write_bytes(b"")
    plane = OverFile("a test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        left = [name for name in _fds() if _is(name, device)]
        answer = plane._command(abi.STATISTICS, abi.Statistics())
        refused = plane._map(4096, 3, 0)
        os._exit(0 if (left, answer, refused) == ([], -errno.EPERM, -errno.EPERM) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert any(_is(name, device) for name in _fds())
    plane.close()
    assert not any(_is(name, device) for name in _fds())


def _is(name: str, device: pathlib.Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{name}") == str(device)
    except OSError:
        return False


def test_rings_are_entered_through_the_descriptor(device: pathlib.Path) -> None:
    from dmaplane import _library

    device.write_bytes(b"")
    with OverFile("a test") as plane:
        client = _library.Client(plane=1, fd=-1)
        plane._attach(client)
        assert (client.plane, client.fd) == (None, plane._fd)
