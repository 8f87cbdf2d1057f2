# SPDX-License-Identifier: MIT
"""Copies through network cards, in a process of its own: the subject of test_stream_nic.py.

  python stream_nic.py PLANE

The simulated device is the device. Says on its last line, in JSON, what it saw: which card's
counters moved for which name, and whether the bytes were right.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dmaplane import stream
from dmaplane._errors import InvalidError
from dmaplane.stream.nic import cards, with_network

BLOCK = 4096
BLOCKS = 256
NAMES = ("rxe0", "rxe1")


def packets(name: str) -> int:
    """That the card has sent since it was made."""
    counter = Path(f"/sys/class/infiniband/{name}/ports/1/hw_counters/sent_pkts")
    return int(counter.read_text())


def carried(nic: str, plane: Any) -> dict[str, Any]:
    """Blocks at random there, others back, and what each card did meanwhile."""
    before = {name: packets(name) for name in NAMES}
    random = np.random.default_rng(len(nic))
    with contextlib.ExitStack() as stack:
        inner = stream.open_device("sim")
        device = stack.enter_context(with_network(inner, nic, plane=plane))
        host = random.integers(0, 256, BLOCKS * BLOCK, dtype=np.uint8)
        first = host.copy().reshape(-1, BLOCK)
        device.register(host.ctypes.data, host.nbytes)
        memory = stack.enter_context(device.memory(host.nbytes))
        copying = stack.enter_context(stream.CopyStream(device, require="nic"))
        out, to = random.permutation(BLOCKS), random.permutation(BLOCKS)
        strides = {"source_stride": BLOCK, "destination_stride": BLOCK, "length": BLOCK}
        begin = time.monotonic()
        up = stream.Copies.indexed(
            source=host.ctypes.data,
            destination=memory.address,
            source_index=out,
            destination_index=to,
            **strides,
        )
        first_up = copying.copy(up)
        first_up.wait(60)
        there = bool((memory.numpy().reshape(-1, BLOCK)[to] == first[out]).all())
        host[:] = 0
        down = stream.Copies.indexed(
            source=memory.address,
            destination=host.ctypes.data,
            source_index=to,
            destination_index=out,
            **strides,
        )
        copying.copy(down).wait(60)
        seconds = time.monotonic() - begin
        back = bool((host.reshape(-1, BLOCK) == first).all())
        # A block that neither begins nor ends at a page, alone.
        host[:] = 7
        odd = stream.Copies.one(memory.address + 1001, host.ctypes.data + 333, 12_345)
        copying.copy(odd).wait(60)
        seen = memory.numpy()
        edges = seen[1001 : 1001 + 12_345].tolist() == [7] * 12_345 and seen[1000] != 7
        assert first_up.tier == "nic"
        told = {
            "card": device.card.name,
            "there": there,
            "back": back,
            "edges": bool(edges),
            "seconds": seconds,
        }
        del seen
    after = {name: packets(name) for name in NAMES}
    told["packets"] = {name: after[name] - before[name] for name in NAMES}
    return told


def refused() -> str:
    """What is said of a card that is not there."""
    with stream.open_device("sim") as device:
        try:
            with_network(device, "mlx5_99").close()
        except InvalidError as error:
            return str(error)
    return ""


def main(plane: Any) -> None:
    told = {
        "cards": [card.name for card in cards()],
        "refused": refused(),
        **{nic: carried(nic, plane) for nic in (*NAMES, "auto")},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
