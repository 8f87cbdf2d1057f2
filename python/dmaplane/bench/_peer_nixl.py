# SPDX-License-Identifier: MIT
"""NIXL as a peer of `bench endpoint`: prepared lists of descriptors, half a window a request.

Lists are prepared before time starts. Its progress thread is off: on few cores it takes the CPU
from the copy. The target polls for one notification a request, which stands for the immediates.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from typing import TYPE_CHECKING, Any

from dmaplane.bench import _peer_program, _peers

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt


def _agent(name: str, memory: _peer_program.Memory) -> Any:
    package = _peers.found(_peers.NIXL)
    api = importlib.import_module(f"{package}._api")
    agent = api.nixl_agent(name, api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
    agent.register_memory([(memory.address, memory.length_bytes, 0, "")], "DRAM")
    return agent


def _version() -> str:
    return importlib.metadata.version(_peers.found(_peers.NIXL).replace("_", "-"))


def target(memory: _peer_program.Memory, other: socket.socket) -> None:
    """Offers the memory; polls while a command is under way."""
    agent = _agent("target", memory)
    metadata = agent.get_agent_metadata()
    other.sendall(memory.address.to_bytes(8, "little") + len(metadata).to_bytes(8, "little"))
    other.sendall(metadata)
    while request := other.recv(8):
        awaited = int.from_bytes(request, "little")
        while awaited > 0:
            awaited -= sum(map(len, agent.get_new_notifs().values()))
        other.sendall(b"d")


def _exactly(other: socket.socket, length: int) -> bytes:
    taken = bytearray()
    while len(taken) < length:
        some = other.recv(length - len(taken))
        if not some:
            raise EOFError("the target ended")
        taken += some
    return bytes(taken)


def writer(
    memory: _peer_program.Memory, other: socket.socket
) -> tuple[str, Callable[[npt.NDArray[np.void], int], int]]:
    """Connects, and writes rows as prepared transfers."""
    agent = _agent("writer", memory)
    address = int.from_bytes(_exactly(other, 8), "little")
    remote = agent.add_remote_agent(_exactly(other, int.from_bytes(_exactly(other, 8), "little")))

    def prepared(owner: str, base: int, offsets: Any, lengths: Any) -> Any:
        blocks = [
            (base + offset, length, 0)
            for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True)
        ]
        return agent.prep_xfer_dlist(owner, blocks, "DRAM")

    def write(rows: npt.NDArray[np.void], window: int) -> int:
        here = prepared(
            "NIXL_INIT_AGENT", memory.address, rows["source_offset"], rows["length_bytes"]
        )
        there = prepared(remote, address, rows["target_offset"], rows["length_bytes"])
        batch = max(1, window // 2)
        starts = range(0, len(rows), batch)
        other.sendall(len(starts).to_bytes(8, "little"))
        in_flight: list[Any] = []
        begin = time.monotonic_ns()
        for start in starts:
            indices = list(range(start, min(start + batch, len(rows))))
            handle = agent.make_prepped_xfer("WRITE", here, indices, there, indices, b"n")
            if agent.transfer(handle) == "ERR":
                raise OSError("NIXL refused a transfer")
            in_flight.append(handle)
            if len(in_flight) == 2:
                finish(in_flight.pop(0))
        for handle in in_flight:
            finish(handle)
        other.recv(1)
        elapsed = time.monotonic_ns() - begin
        agent.release_dlist_handle(here)
        agent.release_dlist_handle(there)
        return elapsed

    def finish(handle: Any) -> None:
        while (state := agent.check_xfer_state(handle)) != "DONE":
            if state == "ERR":
                raise OSError("a NIXL transfer failed")
        agent.release_xfer_handle(handle)

    return f"NIXL {_version()}", write


if __name__ == "__main__":
    _peer_program.run(target, writer)
