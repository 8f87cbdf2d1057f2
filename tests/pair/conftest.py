# SPDX-License-Identifier: MIT
"""Tests of two machines on a cable, run on the host by `make vmtest-pair`.

Around every test: the cable is in and both machines run; afterwards every program of the
test is ended, and neither kernel may have said what it should not. After a failure both machines
end, for one that does not answer would fail all the rest, a minute each. They end with the run.
Elsewhere, where there are no such machines, nothing here is collected.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TREE / "tools/vm"), str(TREE / "tests/pair")]

import kernels  # noqa: E402 (the harness is not a package)
from meeting import CARRIERS, Carrier  # noqa: E402
from node import Address  # noqa: E402
from puppet import Puppet  # noqa: E402
from twins import Pair  # noqa: E402

SHARE = Path(os.environ.get("DMAPLANE_PAIR", "/nonexistent"))
KERNEL = os.environ.get("DMAPLANE_PAIR_KERNEL", "6.12")
SLOWNESS = {"debug": 12}.get(KERNEL, 4)
FAILED = pytest.StashKey[bool]()
IN_CI = os.environ.get("CI") == "true"

if not SHARE.is_dir():
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI everything can be installed: there a skip for a missing tool is a failure."""
    report = yield
    if IN_CI and report.skipped and "missing-tool" in str(report.longrepr):
        report.outcome = "failed"
    item.stash[FAILED] = report.failed or item.stash.get(FAILED, False)
    return report


@pytest.fixture(scope="session")
def two_machines() -> Iterator[Pair]:
    kernel = kernels.find(KERNEL)
    settings = {
        "DMAPLANE_TEST_SLOWNESS": str(SLOWNESS),
        # Of the cases that test_conformance.py runs: the second machine is the one that listens.
        "DMAPLANE_CONFORMANCE_ADDRESS": f"{Address(2).ip}:0",
    }
    with Pair(kernel, SHARE, python=sys.executable, patience_s=15.0 * SLOWNESS, **settings) as made:
        # Where the guest has the tree is where the host has it.
        folders = (TREE / "tests" / name for name in ("endpoint", "kernel", "pair"))
        made.load("puppets", *map(str, folders))
        yield made
        found = [line for node in made.nodes for line in node.all_complaints()]
    assert not found, found


@pytest.fixture(autouse=True)
def pair(request: pytest.FixtureRequest, two_machines: Pair) -> Iterator[Pair]:
    """Both machines; fails a test that makes a kernel complain."""
    two_machines.ready()
    yield two_machines
    said: list[str] = []
    try:
        two_machines.plug()
        for node in two_machines.nodes:
            if node.running:
                node.end_programs()
                said += [f"machine {node.address.number}: {line}" for line in node.complaints()]
    except BaseException:
        two_machines.kill()
        raise
    if said or request.node.stash.get(FAILED, False):
        two_machines.kill()  # what is wrong in them, or switched off, is not the next test's
    assert not said, said


@pytest.fixture(params=CARRIERS, ids=str)
def carrier(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Carrier]:
    """A fabric; what a test takes of a device is given back when its programs have ended."""
    made: Carrier = request.param
    made.ready(pair)
    before = [made.idle(node) for node in pair.nodes]
    yield made
    for node, used in zip(pair.nodes, before, strict=True):
        if node.running:
            node.end_programs()
            made.check(node, used)


@pytest.fixture
def near(pair: Pair, carrier: Carrier) -> Puppet:
    """Who connects, on the first machine; nothing runs in it yet."""
    return Puppet(pair.nodes[0], carrier.fabric, carrier.near)


@pytest.fixture
def far(pair: Pair, carrier: Carrier) -> Puppet:
    """Who listens, on the second."""
    return Puppet(pair.nodes[1], carrier.fabric, carrier.far)


@pytest.fixture(params=[(0, 1), (1, 0)], ids=["1-to-2", "2-to-1"])
def way(request: pytest.FixtureRequest, pair: Pair, carrier: Carrier) -> tuple[Puppet, Puppet]:
    """Who connects and who listens: nothing runs in either yet."""
    near, far = (pair.nodes[number] for number in request.param)
    return Puppet(near, carrier.fabric, carrier.near), Puppet(far, carrier.fabric, carrier.far)
