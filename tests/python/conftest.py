# SPDX-License-Identifier: MIT
"""A plane, a channel on it, and connections, for tests that need nothing special."""

from __future__ import annotations

import concurrent.futures
import dataclasses
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


@dataclasses.dataclass
class Link:
    """Two planes of this process, and a connection between them."""

    near_plane: dmaplane.Plane
    far_plane: dmaplane.Plane
    listener: dmaplane.Listener
    near: dmaplane.Endpoint
    far: dmaplane.Endpoint

    def again(self, **options: Any) -> tuple[dmaplane.Endpoint, dmaplane.Endpoint]:
        """One more connection; @options are of the near side."""
        return joined(self.near_plane, self.listener, **options)

    def opened(
        self, length: int, access: Any = "rw"
    ) -> tuple[dmaplane.Buffer, dmaplane.Region, dmaplane.RemoteRegion]:
        """A buffer of the far side, its region, and what that is on the near side."""
        buffer = self.far_plane.buffer(length)
        region = buffer.region(access)
        return buffer, region, self.near.region(region.key)


def joined(
    plane: dmaplane.Plane, listener: dmaplane.Listener, **options: Any
) -> tuple[dmaplane.Endpoint, dmaplane.Endpoint]:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        calling = pool.submit(plane.connect, listener.address, **options)
        far = listener.accept(timeout=20)
        return calling.result(20), far


@pytest.fixture
def far_plane(plane: dmaplane.Plane) -> Iterator[dmaplane.Plane]:
    """A second plane, where the first one can connect to it."""
    if not plane.capabilities & dmaplane.Capability.ENDPOINT:
        pytest.skip("this plane has no endpoints")
    with dmaplane.open(plane=PLANE) as opened:
        yield opened


@pytest.fixture(params=["shm", "tcp"])
def path(request: pytest.FixtureRequest) -> Any:
    """The path a connection has to take."""
    return request.param


@pytest.fixture
def listener(far_plane: dmaplane.Plane, path: Any) -> Iterator[dmaplane.Listener]:
    """Somebody to connect to, on that path."""
    with far_plane.listen(require=path) as opened:
        yield opened


@pytest.fixture
def link(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, listener: dmaplane.Listener
) -> Iterator[Link]:
    near, far = joined(plane, listener)
    with near, far:
        yield Link(plane, far_plane, listener, near, far)
