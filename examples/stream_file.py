# SPDX-License-Identifier: MIT
"""Stream a file to another process as messages. Credit paces the sender; nobody is overrun."""

import multiprocessing
import os
import tempfile
import zlib

import dmaplane

CHUNK, DEPTH = 256 << 10, 8


def receiver(address: str, size: int) -> None:
    with dmaplane.open(plane="embedded") as plane, plane.connect(address) as endpoint:
        with plane.buffer(DEPTH * CHUNK) as room:
            slots = [room[at : at + CHUNK] for at in range(0, DEPTH * CHUNK, CHUNK)]
            waiting = [endpoint.recv(slot) for slot in slots]
            got, check = 0, 0
            while got < size:
                done = waiting[0].wait(timeout=120)
                check = zlib.crc32(slots[0][: done.length_bytes].memory(), check)
                got += done.length_bytes
                slots.append(slots.pop(0))
                waiting = [*waiting[1:], endpoint.recv(slots[-1])]
            print(f"{got >> 20} MiB came by {endpoint.path}, checksum {check:#010x}", flush=True)


def send(endpoint: dmaplane.Endpoint, plane: dmaplane.Plane, path: str) -> None:
    with plane.buffer(DEPTH * CHUNK) as room, open(path, "rb") as file:
        running: list[dmaplane.Operation] = []
        while True:
            if len(running) == DEPTH:
                running.pop(0).wait(timeout=120)
            at = (file.tell() // CHUNK % DEPTH) * CHUNK
            count = file.readinto(room[at : at + CHUNK].memory())
            if not count:
                break
            running.append(endpoint.send(room[at : at + count]))
        for operation in running:
            operation.wait(timeout=120)
        print(f"sent; waited for credit {endpoint.ledger().stalls} times")


def main() -> None:
    with tempfile.NamedTemporaryFile() as file, dmaplane.open(plane="embedded") as plane:
        file.write(os.urandom(1 << 20) * 16)
        file.flush()
        with plane.listen("127.0.0.1:0") as listener:
            start = multiprocessing.get_context("spawn").Process
            other = start(target=receiver, args=(listener.address, 16 << 20))
            other.start()
            with listener.accept(timeout=120) as endpoint:
                send(endpoint, plane, file.name)
                other.join()


if __name__ == "__main__":
    main()
