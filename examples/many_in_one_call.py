# SPDX-License-Identifier: MIT
"""Scatter 256 blocks with one system call: rows are a numpy structured array."""

import numpy as np

import dmaplane

BLOCK = 4096
COUNT = 256

with dmaplane.open() as plane, plane.channel(slots=COUNT) as channel:
    with plane.buffer(COUNT * BLOCK) as source, plane.buffer(COUNT * BLOCK) as target:
        source.numpy(dtype=np.uint32)[:] = np.arange(COUNT * BLOCK // 4)
        rows = np.zeros(COUNT, dtype=dmaplane.SUBMISSION)
        rows["operation"] = dmaplane.abi.OP_COPY
        rows["source_id"], rows["target_id"] = source.id, target.id
        rows["source_offset"] = np.arange(COUNT) * BLOCK
        rows["target_offset"] = np.random.default_rng(1).permutation(COUNT) * BLOCK
        rows["length_bytes"] = BLOCK
        rows["user_data"] = np.arange(COUNT)

        done = channel.submit(rows, timeout=1.0)

        assert not done["result"].any()
        print(f"{len(done)} blocks in {channel.statistics().batches} call(s)")
