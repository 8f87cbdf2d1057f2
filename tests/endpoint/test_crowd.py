# SPDX-License-Identifier: MIT
"""Where threads may run is the user's to say, and stays as it was.

A worker whose sender is on its processor goes to another one: tests/embedded/test_crowd.c.
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from pathlib import Path

import numpy as np
import pytest

import dmaplane

BLOCKS = 64
BLOCK = 1 << 20
ROUNDS = 12


def joined(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane
) -> tuple[dmaplane.Endpoint, dmaplane.Endpoint]:
    with (
        far_plane.listen("127.0.0.1:0", require="tcp") as listener,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        calling = pool.submit(plane.connect, listener.address, require="tcp", window=BLOCKS)
        far = listener.accept(timeout=20, window=BLOCKS)
        return calling.result(20), far


def tasks() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="missing-device: a second processor")
def test_a_worker_may_run_where_it_might_before() -> None:
    allowed = os.sched_getaffinity(0)
    first = min(allowed)
    with dmaplane.open("embedded") as plane, dmaplane.open("embedded") as far_plane:
        known = tasks()
        near, far = joined(plane, far_plane)
        time.sleep(0.1)  # a thread that was joined may still be there for a moment
        workers = tasks() - known
        assert workers
        with near, far, plane.buffer(BLOCK) as source, far_plane.buffer(BLOCK) as target:
            with target.region() as region:
                remote = near.region(region.key)
                rows = near.rows(
                    "write_imm",
                    source,
                    remote,
                    local_offsets=np.zeros(BLOCKS, dtype=np.int64),
                    remote_offsets=0,
                )
                os.sched_setaffinity(0, {first})
                try:
                    for _ in range(ROUNDS):
                        for worker in workers:
                            os.sched_setaffinity(worker, {first})
                            os.sched_setaffinity(worker, allowed)
                        assert not near.submit(rows, timeout=30)["result"].any()
                        assert len(far.immediates(BLOCKS, timeout=30)) == BLOCKS
                        for worker in workers:
                            assert os.sched_getaffinity(worker) == allowed
                finally:
                    os.sched_setaffinity(0, allowed)
