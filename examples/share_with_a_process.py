# SPDX-License-Identifier: MIT
"""Hand a buffer to another process. While it is held there, it cannot be freed here."""

import subprocess
import sys

import dmaplane

READER = """
import sys, dmaplane
with dmaplane.open() as plane, plane.import_buffer(int(sys.argv[1]), read_only=True) as given:
    print("the other process reads:", bytes(given[:5].memory()).decode(), flush=True)
    sys.stdin.read()
"""

with dmaplane.open() as plane, plane.buffer(4096) as buffer:
    buffer.memory()[:5] = b"hello"
    with buffer.export(read_only=True) as export:
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(export.fd)],
            pass_fds=[export.fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    with reader:
        print(reader.stdout.readline().strip())
        try:
            buffer.destroy()
        except dmaplane.BusyError as busy:
            print("destroy refused, held by", busy.holders)
        reader.kill()
    buffer.destroy(drain=True, timeout=1.0)
    print("after kill -9: freed")
