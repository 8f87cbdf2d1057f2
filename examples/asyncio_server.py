# SPDX-License-Identifier: MIT
"""A server in asyncio: one task for each peer, no thread for any of them."""

import asyncio

import dmaplane

CLIENTS, QUESTIONS = 8, 50


async def serve(endpoint: dmaplane.Endpoint, plane: dmaplane.Plane) -> None:
    with endpoint, plane.buffer(4096) as page:
        try:
            while True:
                got = await endpoint.recv(page)
                text = bytes(page[: got.length_bytes].memory()).upper()
                page.memory()[: len(text)] = text
                await endpoint.send(page[: len(text)])
        except dmaplane.PeerLostError:
            pass  # it has what it wanted


async def ask(plane: dmaplane.Plane, address: str, name: str) -> int:
    endpoint = await plane.connect_async(address)
    answered = 0
    with endpoint, plane.buffer(4096) as page:
        for number in range(QUESTIONS):
            question = f"{name} asks {number}".encode()
            page.memory()[: len(question)] = question
            await endpoint.send(page[: len(question)])
            got = await endpoint.recv(page)
            answered += bytes(page[: got.length_bytes].memory()) == question.upper()
    return answered


async def main() -> None:
    with dmaplane.open(plane="embedded") as plane, plane.listen("127.0.0.1:0") as listener:
        clients = [
            asyncio.create_task(ask(plane, listener.address, f"client {number}"))
            for number in range(CLIENTS)
        ]
        peers = [asyncio.create_task(serve(await listener.accept_async(), plane)) for _ in clients]
        answered = sum(await asyncio.gather(*clients))
        await asyncio.gather(*peers)
        print(f"{answered} of {CLIENTS * QUESTIONS} questions of {CLIENTS} clients answered")


asyncio.run(main())
