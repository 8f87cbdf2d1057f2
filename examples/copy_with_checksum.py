# SPDX-License-Identifier: MIT
"""Copy one buffer into another and have the bytes checked on the way."""

import dmaplane

with dmaplane.open() as plane:
    with plane.buffer(1 << 20) as source, plane.buffer(1 << 20) as target:
        source.numpy()[:] = 7
        with plane.channel() as channel:
            done = channel.copy(target, source, checksum=True).wait(timeout=1.0)
        print(f"{done.length_bytes} bytes by path {done.path}, CRC32C {done.checksum:#010x}")
        assert done.checksum == dmaplane.crc32c(target.memory())
