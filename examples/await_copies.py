# SPDX-License-Identifier: MIT
"""Copies in asyncio: awaiting one lets the others go on."""

import asyncio

import dmaplane


async def main() -> None:
    with dmaplane.open() as plane, plane.channel() as channel:
        with plane.buffer(8 << 20) as source, plane.buffer(8 << 20) as target:
            source.numpy()[:] = 3
            parts = [slice(start, start + (1 << 20)) for start in range(0, 8 << 20, 1 << 20)]
            done = await asyncio.gather(
                *(channel.copy(target[part], source[part]) for part in parts)
            )
            print(f"{sum(each.length_bytes for each in done) >> 20} MiB in {len(done)} copies")


asyncio.run(main())
