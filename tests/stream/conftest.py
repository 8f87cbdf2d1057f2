# SPDX-License-Identifier: MIT
"""Devices to copy with: the simulated one, with a network card too, and a GPU if there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmaplane import UnsupportedError
from dmaplane.stream import Device, open_device
from dmaplane.stream.sim import Faults

sys.path.insert(0, str(Path(__file__).parent))

from ground import Ground, Rig
from loopback import with_loopback


@pytest.fixture(params=["sim", "network", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """What every device has to do is tried on each there is."""
    try:
        opened: Device
        if request.param == "network":
            opened = with_loopback(open_device("sim"))
        else:
            opened = open_device(request.param)
    except UnsupportedError as missing:
        pytest.skip(f"missing-device: {missing}")
    with opened:
        yield opened


@pytest.fixture
def ground(device: Device) -> Iterator[Ground]:
    made = Ground(device)
    yield made
    if not device.closed:
        made.close()


@pytest.fixture
def rig() -> Iterator[Any]:
    made: list[Rig] = []

    def make(**faults: Any) -> Rig:
        made.append(Rig(faults=Faults(**faults)))
        return made[-1]

    yield make
    for each in made:
        each.sim.close()
