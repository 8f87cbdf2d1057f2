# SPDX-License-Identifier: MIT
"""Another process writes into our numpy array, 1024 blocks in one call. We run no code for it."""

import multiprocessing

import numpy as np

import dmaplane

BLOCKS, BLOCK = 1024, 4096


def writer(address: str, key: bytes) -> None:
    with dmaplane.open(plane="embedded") as plane, plane.channel(slots=BLOCKS) as channel:
        with plane.connect(address, channel=channel) as endpoint, endpoint.region(key) as remote:
            with plane.buffer(BLOCKS * BLOCK) as source:
                blocks = source.numpy((BLOCKS, BLOCK // 4), np.uint32)
                blocks[:] = np.arange(BLOCKS)[:, None]
                order = np.random.default_rng(1).permutation(BLOCKS)
                rows = endpoint.rows(
                    "write",
                    source,
                    remote,
                    local_offsets=order * BLOCK,
                    remote_offsets=order * BLOCK,
                    lengths=BLOCK,
                )
                done = endpoint.submit(rows, timeout=120)
                assert not done["result"].any()
                # What was written before lies there when this number arrives.
                endpoint.write_imm(source[:BLOCK], remote[:BLOCK], imm=BLOCKS).wait(timeout=120)


def main() -> None:
    with dmaplane.open(plane="embedded") as plane, plane.buffer(BLOCKS * BLOCK) as buffer:
        ours = buffer.numpy((BLOCKS, BLOCK // 4), np.uint32)
        with buffer.region("write") as region, plane.listen("127.0.0.1:0") as listener:
            start = multiprocessing.get_context("spawn").Process
            other = start(target=writer, args=(listener.address, region.key))
            other.start()
            with listener.accept(timeout=120) as endpoint:
                told = endpoint.immediate().wait(timeout=120)
                assert (ours == np.arange(BLOCKS)[:, None]).all()
                print(f"{told.immediate} blocks are here, by {told.path}, without a copy of ours")
                other.join()


if __name__ == "__main__":
    main()
