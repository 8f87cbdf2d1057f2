# SPDX-License-Identifier: MIT
"""A time limit per operation, and cancel as a fence."""

import dmaplane

with dmaplane.open() as plane, plane.channel() as channel:
    with plane.buffer(64 << 20) as source, plane.buffer(64 << 20) as target:
        operations = [channel.copy(target, source, timeout=5.0) for _ in range(32)]
        stopped = sum(operation.cancel() for operation in operations)
        # From here on nothing touches target, whatever had been submitted.
        target.numpy()[:] = 0
        assert not target.numpy().any()
        counted = channel.statistics()
        print(f"{counted.submissions} accepted, {counted.completions} completed")
        assert counted.cancelled == stopped
