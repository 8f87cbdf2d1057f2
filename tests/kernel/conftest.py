# SPDX-License-Identifier: MIT
"""Tests of the module, run in a virtual machine by `make vmtest`.

Around every test: the kernel may say nothing it should not, taint nothing, keep lockdep
on; and afterwards nobody may hold the module any more. Around all of them: the module is
loaded and unloaded, and the debug kernel's leak detector is asked.

Elsewhere, where there is no such machine, nothing here is collected.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TREE / "tools/vm"), str(TREE / "tests/kernel")]

import kmsg  # noqa: E402 (the harness is not a package)
import soft_roce  # noqa: E402
from driver import Driver  # noqa: E402
from kmsg import lockdep_is_on, taint  # noqa: E402

SHARE = Path(os.environ.get("DMAPLANE_VM", "/nonexistent"))
DEBUGFS = Path("/sys/kernel/debug")
KMEMLEAK = DEBUGFS / "kmemleak"
RELEASE_S = 5.0
KMEMLEAK_AGE_S = 6.0

if not SHARE.is_dir():
    collect_ignore_glob = ["test_*.py"]


IN_CI = os.environ.get("CI") == "true"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI everything can be installed: there a skip for a missing tool is a failure."""
    report = yield
    if IN_CI and report.skipped and "missing-tool" in str(report.longrepr):
        report.outcome = "failed"
    return report


def is_debug_kernel() -> bool:
    return (DEBUGFS / "dma-api").is_dir()


def leaks() -> str:
    """What kmemleak found since it was cleared; nothing where it is off."""
    time.sleep(KMEMLEAK_AGE_S)
    for _ in range(2):
        KMEMLEAK.write_text("scan")
    return KMEMLEAK.read_text(errors="replace")


def kmemleak_is_on() -> bool:
    try:
        KMEMLEAK.write_text("scan=off")
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def share() -> Path:
    """The run's folder, which the host sees too; share / "ivshmem" is the host's side of it."""
    return SHARE


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """The built tests/kernel/NAME.c."""
    return lambda name: SHARE / "programs" / name


@pytest.fixture(scope="session")
def standin() -> Callable[[str], Driver]:
    """The built module NAME of tests/kernel/standin, not loaded."""
    return lambda name: Driver(SHARE / f"{name}.ko")


@pytest.fixture(scope="session", autouse=True)
def driver() -> Iterator[Driver]:
    """dmaplane.ko, loaded with the parameters of the run."""
    module = Driver(SHARE / "dmaplane.ko")
    if is_debug_kernel():
        (DEBUGFS / "dma-api/all_errors").write_text("1")
    watched = kmemleak_is_on()
    if watched:
        KMEMLEAK.write_text("clear")
    with kmsg.Reader() as log:
        module.load(*os.environ.get("DMAPLANE_MODULE_PARAMETERS", "").split())
        yield module
        log.lines()
        # Before the module goes a leak still has names in its backtrace.
        named = leaks() if watched else ""
        if module.loaded:
            module.unload()
        said = [line for line in log.lines() if kmsg.is_splat(line)]
    assert not said, said
    assert not (DEBUGFS / "dmaplane").exists()
    assert not watched or not leaks(), named


@pytest.fixture(autouse=True)
def quiet_kernel(request: pytest.FixtureRequest, driver: Driver) -> Iterator[None]:
    """Fails a test that makes the kernel complain or leaves the module held.

    @pytest.mark.kernel_log("words") allows lines that contain the words.
    """
    allowed = [word for mark in request.node.iter_markers("kernel_log") for word in mark.args]
    taint_before, users_before = taint(), driver.users
    kmsg.write(f"dmaplane-test: {request.node.name}")
    with kmsg.Reader() as log:
        yield
        gc.collect()
        released = driver.wait_users(users_before, RELEASE_S)
        said = [line for line in log.lines() if kmsg.is_splat(line)]
    expected = [line for line in said if any(word in line for word in allowed)]
    said = [line for line in said if line not in expected]
    with (SHARE / "expected").open("a") as told:  # the host reads the whole log, too
        told.writelines(f"{line}\n" for line in expected)
    if said and is_debug_kernel():
        # After the first report lockdep and others are off: what follows proves nothing.
        request.session.shouldstop = "the kernel complained, its detectors may be off"
    assert not said, "the kernel said: " + "; ".join(said)
    assert taint() == taint_before, f"the test tainted the kernel: {taint():#x}"
    assert lockdep_is_on(), "lockdep has switched itself off"
    assert released, f"{driver.users} still hold the module {RELEASE_S:.0f} s after the test"


@pytest.fixture(scope="module")
def rxe() -> Iterator[None]:
    """An RDMA device, for a file of tests."""
    yield from soft_roce.device()


@pytest.fixture
def clean(rxe: None) -> Iterator[None]:
    """Afterwards nothing of the device is held, and never was a receiver not ready."""
    before = soft_roce.resources()
    yield
    assert soft_roce.resources() == before
    assert soft_roce.naks() == 0
