# SPDX-License-Identifier: MIT
"""A process with a kernel plane that is killed while it moves bytes: the peer of test_kernel_verbs.

  python verbs_peer.py ADDRESS KIND     KIND: kernel or embedded

Says where it listens, lets one peer in, takes the key of his region from its standard input and
gives one of its own, then says "busy" and writes and reads until it is killed.
"""

from __future__ import annotations

import sys
from typing import Any

import dmaplane
from dmaplane.testing import _pair
from dmaplane.testing._rig import MIB, Rings


def said() -> bytes:
    return bytes.fromhex(sys.stdin.readline().strip())


def main(address: str, kind: Any) -> None:
    plane = dmaplane.open(plane=kind)
    rings = Rings(plane, slots=64)
    listener, bound = _pair.listen(plane, rings.id, address, path="verbs", secret=b"peer")
    print(bound, flush=True)
    side = _pair.Side(plane, rings, _pair.accept(plane, listener, rings.id))
    memory = side.memory(4 * MIB, fill=3)
    made = side.region(memory)
    print(_pair.key_of(made).hex(), flush=True)
    answer, imported = side.try_import(said())
    assert answer == 0, answer
    remote = imported.region_id
    side.submit(_pair.recv(memory, 4096))
    print("busy", flush=True)
    while True:
        side.run(
            _pair.write(memory, remote, MIB),
            _pair.read(memory, remote, MIB),
            _pair.write(memory, remote, 64),
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
