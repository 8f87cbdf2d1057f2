# SPDX-License-Identifier: MIT
"""Tests of KV caches. What several of them need lies beside them, as modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dmaplane
from dmaplane.kv import Pool

sys.path.insert(0, str(Path(__file__).parent))

from small_pool import BLOCKS, SMALL, Clock


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="embedded") as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(plane: dmaplane.Plane, clock: Clock) -> Iterator[Pool]:
    """A small one; its books balance when the test is over."""
    with Pool(plane, SMALL, BLOCKS, clock=clock) as made:
        yield made
        made.audit()
