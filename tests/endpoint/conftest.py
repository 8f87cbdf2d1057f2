# SPDX-License-Identifier: MIT
"""Tests of connections between processes. Peers are children that can be killed and stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dmaplane
from dmaplane.testing._rig import Rings

sys.path.insert(0, str(Path(__file__).parent))

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
