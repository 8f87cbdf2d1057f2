# SPDX-License-Identifier: MIT
"""The parts of `bench rdma` and `bench stream` that can be wrong without a device."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from dmaplane import _abi, bench
from dmaplane._errors import DmaplaneError, InvalidError
from dmaplane.bench import _device, _perftest, stream

BANDWIDTH = """\
---------------------------------------------------------------------------------------
                    RDMA_Write BW Test
 Dual-port       : OFF		Device         : rxe0
 local address: LID 0000 QPN 0x0018 PSN 0xf7f2c5 RKey 0x000a8b VAddr 0x007f1b0c8f2000
 GID: 00:00:00:00:00:00:00:00:00:00:255:255:10:77:00:01
---------------------------------------------------------------------------------------
 #bytes     #iterations    BW peak[MiB/sec]    BW average[MiB/sec]   MsgRate[Mpps]
 4096       2000             0.00               27.33  \t\t     0.006996
---------------------------------------------------------------------------------------
"""


def port(root: pathlib.Path, device: str, state: str, gids: dict[str, tuple[str, str]]) -> None:
    """One port of a device as /sys has it; @gids: by index, the GID and its type."""
    folder = root / device / "ports/1"
    (folder / "gids").mkdir(parents=True)
    (folder / "gid_attrs/types").mkdir(parents=True)
    (folder / "state").write_text(f"{state}\n")
    for index, (gid, kind) in gids.items():
        (folder / "gids" / index).write_text(f"{gid}\n")
        (folder / "gid_attrs/types" / index).write_text(f"{kind}\n")


V4 = "0000:0000:0000:0000:0000:ffff:0a4d:0001"
V6 = "fd00:0000:0000:0000:0000:0000:0000:0007"
LOCAL = "fe80:0000:0000:0000:5054:00ff:fe00:0001"
NONE = "0000:0000:0000:0000:0000:0000:0000:0000"


def test_the_first_device_with_a_usable_gid_is_taken(tmp_path: pathlib.Path) -> None:
    port(tmp_path, "down0", "1: DOWN", {"0": (V4, "RoCE v2")})
    port(tmp_path, "old0", "4: ACTIVE", {"0": (V4, "IB/RoCE v1")})
    port(
        tmp_path,
        "rxe0",
        "4: ACTIVE",
        {
            "0": (LOCAL, "RoCE v2"),
            "1": (V6, "RoCE v2"),
            "10": (V4, "RoCE v2"),
            "2": (NONE, "RoCE v2"),
        },
    )
    found = _device.find(root=tmp_path)
    assert (found.name, found.port, found.gid_index) == ("rxe0", 1, 10)
    assert found.address == "10.77.0.1:0"
    assert _device.find("fd00::7", tmp_path).address == "[fd00::7]:0"
    with pytest.raises(DmaplaneError, match=r"no RDMA device has a RoCE v2 GID .* 10\.0\.0\.9"):
        _device.find("10.0.0.9", tmp_path)


def test_without_a_device_the_two_commands_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DmaplaneError, match="modprobe rdma_rxe; rdma link add rxe0 type rxe"):
        _device.find(root=tmp_path)


def test_the_line_of_figures_is_found_and_nothing_else_is_taken_for_it() -> None:
    assert _perftest.figures(BANDWIDTH) == [4096.0, 2000.0, 0.0, 27.33, 0.006996]
    for wrong in ("", "Couldn't connect to 10.77.0.1:18515", BANDWIDTH + " 1 2 3 4 5\n"):
        with pytest.raises(DmaplaneError, match="nothing that can be read"):
            _perftest.figures(wrong)


def test_the_knee_is_the_smallest_depth_with_nine_tenths_of_the_best() -> None:
    assert stream.knee((1, 2, 4, 8), (1.0, 5.0, 9.0, 10.0)) == 4
    assert stream.knee((1, 2, 4, 8), (9.5, 5.0, 9.0, 10.0)) == 1
    assert stream.knee((1, 2), (1.0, 2.0)) == 2


class FakeChannel:
    """Completes as many as are waited for; notes how many were in flight."""

    def __init__(self) -> None:
        self.pushed = self.taken = self.in_flight_max = 0

    def push(self, rows: np.ndarray[Any, np.dtype[np.void]]) -> None:
        self.pushed += len(rows)
        self.in_flight_max = max(self.in_flight_max, self.pushed - self.taken)

    def completions(self, wait: int) -> np.ndarray[Any, np.dtype[np.void]]:
        assert self.taken + wait <= self.pushed, "waits for what was never submitted"
        self.taken += wait
        return np.zeros(wait, dtype=_abi.COMPLETION)


@pytest.mark.parametrize(("depth", "count"), [(1, 5), (4, 4), (7, 100), (64, 3)])
def test_a_stream_keeps_its_depth_and_writes_everything(depth: int, count: int) -> None:
    rows = np.zeros(count, dtype=_abi.SUBMISSION)
    rows["length_bytes"] = 10
    channel = FakeChannel()
    rates = stream.stream(channel, rows, depth, 1000.0)  # type: ignore[arg-type]
    assert channel.pushed == channel.taken == count
    assert channel.in_flight_max == min(depth, count)
    assert len(rates) == 1  # shorter than one window, all of it counts


def test_an_option_of_another_bench_is_refused() -> None:
    with pytest.raises(InvalidError, match="bench ring has no option address"):
        bench.run("ring", address="10.0.0.1")
