# SPDX-License-Identifier: MIT
"""L10: bytes that are not what they should be are an error that says where they were found."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
from tap import Tap

import dmaplane

LENGTH = 100_000
SOON = 10.0


@contextlib.contextmanager
def joined(
    path: str, *, spoilt: bool = False
) -> Iterator[tuple[dmaplane.Endpoint, dmaplane.Endpoint]]:
    with (
        dmaplane.open(plane="embedded") as near_plane,
        dmaplane.open(plane="embedded") as far_plane,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        far_plane.listen("127.0.0.1:0", require=path) as listener,  # type: ignore[arg-type]
    ):
        accepting = pool.submit(listener.accept, timeout=SOON)
        with contextlib.ExitStack() as stack:
            address = listener.address
            if spoilt:
                tap = stack.enter_context(contextlib.closing(Tap(address)))
                address = tap.address
            with (
                near_plane.connect(address, require=path, timeout=SOON) as near,  # type: ignore[arg-type]
                accepting.result(SOON) as far,
            ):
                if spoilt:
                    tap.spoil_after = len(tap.heard) + LENGTH // 2
                yield near, far


def test_write_that_changed_on_the_wire_names_it() -> None:
    with joined("tcp", spoilt=True) as (near, far):
        with near.plane.buffer(LENGTH) as ours, far.plane.buffer(LENGTH) as theirs:
            ours.numpy()[:] = 7
            with theirs.region("rw") as region, near.region(region.key) as remote:
                where = f"on the way to {near.peer_address} by tcp"
                with pytest.raises(dmaplane.ChecksumError, match=where):
                    near.write(ours[:], remote[:], checksum=True).wait(SOON)
                near.write(ours[:], remote[:], checksum=True).wait(SOON)
            assert (theirs.numpy() == 7).all()


def test_message_that_changed_on_the_wire_names_it_at_both_ends() -> None:
    with joined("tcp", spoilt=True) as (near, far):
        with near.plane.buffer(LENGTH) as ours, far.plane.buffer(LENGTH) as theirs:
            ours.numpy()[:] = 7
            receiving = far.recv(theirs[:], checksum=True)
            sending = near.send(ours[:], checksum=True)
            with pytest.raises(dmaplane.ChecksumError, match=r"on the way to .* by tcp"):
                sending.wait(SOON)
            with pytest.raises(dmaplane.ChecksumError, match=r"on the way from .* by tcp"):
                receiving.wait(SOON)


@pytest.mark.parametrize("path", ["shm", "tcp"])
def test_what_was_wrong_before_it_was_sent_is_told_apart(path: str) -> None:
    """A SEND is compared with its source here; nothing of it goes out."""
    with joined(path) as (near, far):
        with near.plane.buffer(LENGTH) as ours, far.plane.buffer(LENGTH) as theirs:
            ours.numpy()[:] = np.arange(LENGTH, dtype=np.uint32).view(np.uint8)[:LENGTH]
            receiving = far.recv(theirs[:])
            with pytest.raises(dmaplane.ChecksumError, match="own memory; nothing was sent"):
                near.send(ours[:], verify=1).wait(SOON)
            assert near.send(ours[:], checksum=True).wait(SOON).ok
            assert receiving.wait(SOON).length_bytes == LENGTH
            with theirs.region("read") as region, near.region(region.key) as remote:
                with pytest.raises(dmaplane.ChecksumError, match=rf"on the way from .* by {path}"):
                    near.read(ours[:], remote[:], verify=1).wait(SOON)
