# SPDX-License-Identifier: MIT
"""Mooncake's transfer engine over tcp as a peer of `bench endpoint`: a window a request.

Its requests have no immediate, and the target is not told: time ends at the last answer.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dmaplane.bench import _peer_program

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import numpy.typing as npt

_HOST = "127.0.0.1"


def _engine(memory: _peer_program.Memory) -> Any:
    engine = importlib.import_module("mooncake.engine").TransferEngine()
    if engine.initialize(_HOST, "P2PHANDSHAKE", "tcp", ""):
        raise OSError("Mooncake's engine does not start")
    if engine.register_memory(memory.address, memory.length_bytes):
        raise OSError("Mooncake does not register the memory")
    return engine


def target(memory: _peer_program.Memory, other: socket.socket) -> None:
    """Offers the memory; its engine's threads do the rest."""
    engine = _engine(memory)
    other.sendall(memory.address.to_bytes(8, "little"))
    other.sendall(engine.get_rpc_port().to_bytes(8, "little"))
    other.recv(1)


def writer(
    memory: _peer_program.Memory, other: socket.socket
) -> tuple[str, Callable[[npt.NDArray[np.void], int], int]]:
    """Connects, and writes rows in batches."""
    engine = _engine(memory)
    address, port = (int.from_bytes(other.recv(8), "little") for _ in range(2))

    def write(rows: npt.NDArray[np.void], window: int) -> int:
        here = (rows["source_offset"] + np.uint64(memory.address)).tolist()
        there = (rows["target_offset"] + np.uint64(address)).tolist()
        lengths = rows["length_bytes"].tolist()
        begin = time.monotonic_ns()
        for first in range(0, len(rows), window):
            part = slice(first, first + window)
            answer = engine.batch_transfer_sync_write(
                f"{_HOST}:{port}", here[part], there[part], lengths[part]
            )
            if answer:
                raise OSError(f"a transfer of Mooncake failed: {answer}")
        return time.monotonic_ns() - begin

    version = importlib.metadata.version("mooncake-transfer-engine-non-cuda")
    return f"Mooncake {version}", write


if __name__ == "__main__":
    _peer_program.run(target, writer)
