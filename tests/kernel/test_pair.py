# SPDX-License-Identifier: MIT
"""The module's queue pairs, two of them in one machine over Soft-RoCE.

The stand-in pair_talk.ko drives both; each case is one write to its debugfs file.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attack
import pytest
import soft_roce
from driver import Driver

FOLDER = Path("/sys/kernel/debug/pair_talk")
SEED = 20260721


@pytest.fixture
def talk(clean: None, standin: Callable[[str], Driver]) -> Iterator[Callable[[str], str]]:
    """Runs one case; returns what it said."""
    module = standin("pair_talk")
    module.load()

    def run(case: str) -> str:
        try:
            (FOLDER / "run").write_text(f"{case} {soft_roce.ADDRESS} {SEED}")
        except OSError as error:
            raise AssertionError(f"{case}: {error}: {(FOLDER / 'said').read_text()}") from None
        return (FOLDER / "said").read_text()

    try:
        yield run
    finally:
        module.unload()


@pytest.mark.parametrize("case", ["both-ways", "one-way", "ping-pong", "full"])
def test_bytes_arrive_in_order_and_slots_are_repaid(talk: Callable[[str], str], case: str) -> None:
    print(talk(case))


@pytest.mark.parametrize("case", ["moves", "parts"])
def test_moves_land_where_they_should_and_nowhere_else(
    talk: Callable[[str], str], case: str
) -> None:
    talk(case)


@pytest.mark.parametrize(
    "case",
    [
        "nothing-granted",
        "no-right",
        "revoked-while-moving",
        "revoked-alone",
        "revoked-by-another-thread",
        "revokes-too-many",
    ],
)
def test_a_region_is_granted_and_ends_as_its_owner_says(
    talk: Callable[[str], str], case: str
) -> None:
    talk(case)


@pytest.mark.parametrize("case", ["peer-closes", "doors", "any-address"])
def test_ends_leave_nothing(talk: Callable[[str], str], case: str) -> None:
    talk(case)


@pytest.mark.parametrize(
    "function", ["dmp_pair_door_open", "dmp_pair_dial", "dmp_pair_serve", "dmp_pair_post"]
)
@pytest.mark.timeout(1200)
def test_no_failure_leaves_anything(
    talk: Callable[[str], str], program: Callable[[str], Path], function: str
) -> None:
    if not attack.IS_DEBUG:
        pytest.skip("this kernel has no fault injection (CONFIG_FAULT_INJECTION)")
    talk("brief")
    said = attack.run(program("pair_failures"), "brief", soft_roce.ADDRESS, function)
    refused = re.search(r"(\d+) refused", said)
    assert refused
    assert int(refused[1]) > 0, "no failure was ever felt"


def test_a_link_deleted_in_use_is_let_go(rxe: None, standin: Callable[[str], Driver]) -> None:
    """The pairs are lost, the door shuts itself; deleting waits for them and returns."""
    module = standin("pair_talk")
    module.load()
    result: list[str] = []

    def run() -> None:
        try:
            (FOLDER / "run").write_text(f"removed {soft_roce.ADDRESS} {SEED}")
            result.append("done")
        except OSError as error:
            result.append(f"{error}: {(FOLDER / 'said').read_text()}")

    try:
        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive() and (FOLDER / "phase").read_text() != "talking":
            time.sleep(0.01)
        assert soft_roce.run("rdma link delete rxe0").returncode == 0
        assert not soft_roce.DEVICE.exists()
        thread.join()
        assert result == ["done"]
    finally:
        module.unload()
        soft_roce.add_link()
