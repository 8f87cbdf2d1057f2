# SPDX-License-Identifier: MIT
"""Tests of connections between processes. Peers are children that can be killed and stopped."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dmaplane
from dmaplane.testing._rig import Rings

sys.path.insert(0, str(Path(__file__).parent))

from cable import Cable
from nursery import Nursery


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="embedded") as made:
        yield made


@pytest.fixture
def rings(plane: dmaplane.Plane) -> Rings:
    return Rings(plane, slots=128)


@pytest.fixture(params=["shm", "tcp"])
def path(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def cable() -> Iterator[Cable]:
    if not shutil.which("ip"):
        pytest.skip("missing-tool: ip")
    if os.geteuid():
        pytest.skip("missing-right: network namespaces are made by root")
    made = Cable()
    try:
        try:
            made.lay()
        except AssertionError as reason:
            pytest.skip(f"missing-right: {reason}")
        yield made
    finally:
        made.clear()
