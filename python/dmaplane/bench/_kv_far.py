# SPDX-License-Identifier: MIT
"""The decode side of `bench kv`, in a process of its own: accepts whatever is announced.

Told what to do in JSON, one line a request on stdin; answers in JSON on stdout, as _far.py does.
"pool" makes the blocks, "meet" lets one connection in, "times" tells what the last transfer
took there. It asks for one transfer after the other, each with the blocks it goes to. It ends when
stdin does.

Who owns what. One pool, and on it one connection after the other, each with its own listener;
all of them are this process's until it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from typing import Any, Final

import dmaplane
from dmaplane._errors import DmaplaneError
from dmaplane.kv import Layout, Pool, Receiver

WINDOW: Final = 1024


class Far:
    """What this process does, a method a request; each gives its answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._plane: dmaplane.Plane | None = None
        self._pool: Pool | None = None
        self._export: Any = None
        self._meeting: asyncio.Task[None] | None = None
        self._times: dict[str, float] = {}

    async def pool(self, request: dict[str, Any]) -> dict[str, Any]:
        """A pool of that layout; its memory, for others to map."""
        await self._part()
        if self._plane is None:
            self._plane = dmaplane.open(request["plane"])
        if self._pool is not None:
            self._export.close()
            self._pool.close()
        layout = Layout.decode(bytes.fromhex(request["layout"]))
        self._pool = Pool(self._plane, layout, request["blocks"])
        memory = self._pool.buffer.numpy()
        memory[:] = 0
        self._export = self._pool.buffer.export()
        return {"fd": self._export.fd}

    async def meet(self, request: dict[str, Any]) -> dict[str, Any]:
        """Where to connect; whoever does is received from."""
        await self._part()
        plane, pool = self._plane, self._pool
        assert plane is not None
        assert pool is not None
        listener = plane.listen("127.0.0.1:0", require=request["path"])
        self._meeting = self._loop.create_task(self._receive(listener, pool))
        return {"address": listener.address}

    async def times(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of the last transfer since it was announced: to its first layer, to its end."""
        return self._times

    async def _part(self) -> None:
        """Ends the connection there is."""
        if self._meeting is not None:
            self._meeting.cancel()
            with contextlib.suppress(asyncio.CancelledError, DmaplaneError):
                await self._meeting
            self._meeting = None

    async def _receive(self, listener: dmaplane.Listener, pool: Pool) -> None:
        with listener:
            endpoint = await listener.accept_async(window=WINDOW, window_bytes=1 << 30)
        async with await Receiver.open(endpoint, pool) as receiver:
            for number in itertools.count():
                with pool.lease(pool.blocks, holder="bench") as lease:
                    await receiver.ask(f"r{number}", lease=lease)
                    incoming = await anext(receiver, None)
                    if incoming is None:
                        return
                    await incoming.accept(lease)
                    await incoming.layer(0)
                    await incoming.complete()
                    took = incoming.statistics
                    self._times = {"first": took.first_layer_seconds, "whole": took.seconds}


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is printed by mistake is no answer
    far = Far(loop)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = json.loads(line)
        try:
            answer = await getattr(far, request["do"])(request)
        except (DmaplaneError, OSError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serves until stdin ends."""
    asyncio.run(_serve())
    os._exit(0)  # everything goes with the process


if __name__ == "__main__":
    main()
