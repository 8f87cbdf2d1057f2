# SPDX-License-Identifier: MIT
"""A plane, and a channel on it, for tests that need nothing special."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

import dmaplane

# tests/kernel runs them again on the kernel plane.
PLANE: Any = os.environ.get("DMAPLANE_TEST_PLANE", "embedded")


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane=PLANE) as opened:
        yield opened


@pytest.fixture
def channel(plane: dmaplane.Plane) -> Iterator[dmaplane.Channel]:
    with plane.channel(slots=64) as opened:
        yield opened
