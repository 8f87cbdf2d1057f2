# SPDX-License-Identifier: MIT
"""A plane, and a channel on it, for tests that need nothing special."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dmaplane


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="embedded") as opened:
        yield opened


@pytest.fixture
def channel(plane: dmaplane.Plane) -> Iterator[dmaplane.Channel]:
    with plane.channel(slots=64) as opened:
        yield opened
