# SPDX-License-Identifier: MIT
"""Prefill and decode servers: the tokens of one process, and nothing lost whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("h11", reason="missing-package: h11")

from http_client import PATIENCE_S, Got, ask, get, post
from serving import SMALL, Scene, scene, until

import dmaplane
from dmaplane.kv import Pool
from dmaplane.kv.engine import load
from dmaplane.kv.serve import DecodeSettings, Link, LinkSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

PROMPT = list(b"the quick brown fox jumps over the lazy dog")


def run(test: Callable[[Scene], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def whole() -> None:
        async with scene(**settings) as made:
            await asyncio.wait_for(test(made), 4 * PATIENCE_S)
            await until(made.all_free)
            assert made.decoder.running == made.decoder.waiting == 0

    asyncio.run(whole())


def wanted(prompt: list[int] | str, count: int, **more: Any) -> bytes:
    return post({"prompt": prompt, "max_tokens": count, **more})


def tokens_of(got: Got) -> list[int]:
    """Of either form of answer."""
    if got.headers["content-type"] != "text/event-stream":
        return list(got.json["choices"][0]["token_ids"])
    assert got.events[-1] == "[DONE]"
    return [token for one in got.events[:-1] for token in one["choices"][0]["token_ids"]]


@pytest.mark.parametrize("path", ["shm", "tcp"])
def test_tokens_are_those_of_one_process(path: str) -> None:
    async def test(made: Scene) -> None:
        for length in (1, 2, 15, 16, 17, 18, 40):
            for stream in (False, True):
                prompt = (PROMPT * 2)[:length]
                got = await ask(made.port, wanted(prompt, 8, stream=stream))
                assert got.status == 200, got.body
                assert tokens_of(got) == made.single(prompt, 8), (length, stream)

    run(test, path=path)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"block_tokens": 8}, {"block_tokens": 32}),
        ({"block_tokens": 32, "order": "HND"}, {"block_tokens": 16, "order": "NHD"}),
        ({"order": "NHD"}, {"order": "HND"}),
    ],
)
def test_pools_of_other_block_size_and_order_give_the_same_tokens(theirs: Any, ours: Any) -> None:
    async def test(made: Scene) -> None:
        got = await ask(made.port, wanted(PROMPT, 12))
        assert tokens_of(got) == made.single(PROMPT, 12)

    run(test, theirs=theirs, ours=ours)


def test_an_answer_has_text_usage_and_figures() -> None:
    async def test(made: Scene) -> None:
        got = (await ask(made.port, wanted("hello", 4))).json
        assert got["object"] == "text_completion"
        assert got["id"].startswith("cmpl-")
        assert got["choices"][0]["finish_reason"] == "length"
        told = bytes(got["choices"][0]["token_ids"]).decode(errors="replace")
        assert got["choices"][0]["text"] == told
        assert got["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
        figures = got["dmaplane"]
        assert figures["bytes"] == 4 * SMALL["layers"] * made.engine.layout.token_bytes
        assert figures["chunks"] >= SMALL["layers"]
        assert figures["path"] == "shm"
        assert len(figures["layers"]) == len(figures["computed"]) == SMALL["layers"]
        assert figures["layers"] == sorted(figures["layers"])
        assert figures["complete"] <= figures["decoded"][0]

    run(test)


def test_a_stream_tells_of_layers_to_those_who_ask() -> None:
    async def test(made: Scene) -> None:
        got = await ask(made.port, wanted("hello", 2, stream=True, progress=True))
        for layer in range(SMALL["layers"]):
            assert b": layer %d of 3\n\n" % (layer + 1) in got.body
        assert len(tokens_of(got)) == 2
        quiet = await ask(made.port, wanted("hello", 2, stream=True))
        assert b": layer" not in quiet.body

    run(test)


def test_decoding_begins_before_prefill_has_ended() -> None:
    """It is through layer 0 and waits for layer 1, which prefill is kept from computing."""

    async def test(made: Scene) -> None:
        made.engine.held = True
        asking = asyncio.create_task(ask(made.port, wanted("hello", 2, stream=True, progress=True)))
        await until(lambda: made.engine.decode_layer == 1)
        assert made.engine.at_layer == 1
        made.engine.held = False
        assert tokens_of(await asking) == made.single(list(b"hello"), 2)

    run(test)


def test_fifty_clients_at_once_get_each_their_own_tokens() -> None:
    async def test(made: Scene) -> None:
        prompts = [
            [(7 * number + step) % 256 for step in range(3 + number % 30)] for number in range(50)
        ]
        got = await asyncio.gather(
            *(ask(made.port, wanted(prompt, 4, stream=True)) for prompt in prompts)
        )
        for prompt, one in zip(prompts, got, strict=True):
            assert one.status == 200, one.body
            assert tokens_of(one) == made.single(prompt, 4)
        meter = made.decoder.meter
        assert (meter.requests, meter.completed, meter.tokens) == (50, 50, 200)
        assert meter.failed == meter.refused == meter.cancelled == 0

    run(test, blocks=24, prefill_blocks=24, settings=DecodeSettings(running_max=8))


def test_one_too_many_is_told_to_come_back() -> None:
    async def test(made: Scene) -> None:
        made.engine.held = True
        first = asyncio.create_task(ask(made.port, wanted("hello", 2)))
        await until(lambda: made.decoder.running == 1)
        second = asyncio.create_task(ask(made.port, wanted("hello", 2)))
        await until(lambda: made.decoder.waiting == 1)
        third = await ask(made.port, wanted("hello", 2))
        assert third.status == 429
        assert third.headers["retry-after"] == "1"
        made.engine.held = False
        assert tokens_of(await first) == tokens_of(await second)
        assert made.decoder.meter.refused == 1

    run(test, settings=DecodeSettings(running_max=1, waiting_max=1))


def test_a_client_that_leaves_while_its_cache_comes_ends_both_sides() -> None:
    async def test(made: Scene) -> None:
        made.engine.held = True
        _, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(wanted("hello", 4, stream=True))
        await until(lambda: made.engine.at_layer == 1)
        writer.close()
        await until(lambda: made.decoder.meter.cancelled == 1)
        assert made.decode_pool.account().leased == 0
        await asyncio.sleep(0.1)
        made.engine.held = False
        await until(made.all_free)
        assert made.engine.at_layer == 1, "prefill went on for nobody"
        assert tokens_of(await ask(made.port, wanted(PROMPT, 4))) == made.single(PROMPT, 4)

    run(test)


def test_a_client_that_leaves_in_mid_stream_gives_its_blocks_back() -> None:
    async def test(made: Scene) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(wanted("hello", 900, stream=True))
        await reader.readuntil(b"token_ids")
        assert made.decoder.running == 1
        writer.close()
        await until(lambda: made.decoder.running == 0)
        assert made.decoder.meter.cancelled == 1
        assert made.decoder.meter.tokens == 0

    run(test)


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        (post(b"{"), 400, "JSON"),
        (post({"prompt": "x" * 2000}), 400, "context"),
        (post({"prompt": "x", "temperature": 1}), 400, "greedy"),
        (post(b"x" * 300_000), 413, "longer than"),
        (get("/v1/completions"), 405, "POST"),
        (post({}, path="/metrics"), 405, "GET"),
        (get("/nothing"), 404, "nothing here"),
    ],
)
def test_wrong_requests_have_their_status(request_: bytes, status: int, named: str) -> None:
    async def test(made: Scene) -> None:
        got = await ask(made.port, request_)
        assert got.status == status
        assert named in got.json["error"]["message"]
        assert (await ask(made.port, wanted("x", 1))).status == 200

    run(test)


def test_a_prompt_too_long_for_the_prefill_server_says_so() -> None:
    async def test(made: Scene) -> None:
        got = await ask(made.port, wanted(PROMPT, 1))
        assert got.status == 502
        assert "--blocks" in got.json["error"]["message"]
        assert (await ask(made.port, wanted("x" * 16, 1))).status == 200

    run(test, prefill_blocks=1)


def test_a_request_that_takes_too_long_ends_with_504() -> None:
    async def test(made: Scene) -> None:
        made.engine.held = True
        got = await ask(made.port, wanted("hello", 1))
        assert got.status == 504
        made.engine.held = False
        await until(made.all_free)

    run(test, settings=DecodeSettings(request_seconds=0.3))


def test_a_prefill_server_that_goes_and_comes_back() -> None:
    async def test(made: Scene) -> None:
        made.engine.held = True
        asking = asyncio.create_task(ask(made.port, wanted("hello", 2)))
        await until(lambda: made.engine.at_layer == 1)
        closing = asyncio.create_task(made.prefill.close())
        got = await asking
        assert got.status in (502, 503)
        assert "prefill" in got.json["error"]["message"]
        made.engine.held = False
        await closing
        health = await ask(made.port, get("/health"))
        assert health.status == 503
        assert health.json["down"]
        lost = await ask(made.port, wanted("hello", 2))
        assert lost.status == 503
        assert "no connection to the prefill server" in lost.json["error"]["message"]
        made.engine.held = False
        await made.restart()
        await until(lambda: not made.decoder.link.down)
        assert tokens_of(await ask(made.port, wanted(PROMPT, 4))) == made.single(PROMPT, 4)
        assert made.decoder.link.connections == 2

    run(test)


def test_another_model_is_refused_when_the_servers_meet() -> None:
    async def whole() -> None:
        async with scene() as made:
            other = load("numpy", **{**SMALL, "seed": 2})
            with dmaplane.open(plane="embedded") as plane, Pool(plane, other.layout, 8) as pool:
                with pytest.raises(dmaplane.LayoutError, match="model"):
                    await Link.open(
                        plane, pool, LinkSettings(address=made.prefill.listener.address)
                    )

    asyncio.run(whole())


def test_nobody_there_is_an_error_at_once() -> None:
    async def whole() -> None:
        engine = load("numpy", **SMALL)
        with dmaplane.open(plane="embedded") as plane, Pool(plane, engine.layout, 8) as pool:
            with pytest.raises(dmaplane.UnreachableError):
                await Link.open(plane, pool, LinkSettings(address="127.0.0.1:1"))

    asyncio.run(whole())


def test_books_and_metrics_tell_of_what_goes_on() -> None:
    async def test(made: Scene) -> None:
        made.engine.held = True
        asking = asyncio.create_task(ask(made.port, wanted("hello", 2)))
        await until(lambda: made.engine.at_layer == 1)
        books = (await ask(made.port, get("/kv/leases"))).json
        assert books["account"]["leased"] == len(books["leases"]) == 1
        row = books["leases"][0]
        assert row["holder"] == "decode"
        assert row["trace"].startswith("cmpl-")
        shown = (await ask(made.port, get("/metrics"))).body.decode()
        assert "dmaplane_kv_requests_running 1" in shown
        assert "dmaplane_kv_blocks_leased 1" in shown
        made.engine.held = False
        await asking
        shown = (await ask(made.port, get("/metrics"))).body.decode()
        assert "dmaplane_kv_completed_total 1" in shown
        assert "dmaplane_kv_blocks_leased 0" in shown
        health = await ask(made.port, get("/health"))
        assert (health.status, health.json["engine"]) == (200, "numpy")
        assert (await ask(made.port, get("/v1/models"))).json["data"][0]["id"] == "numpy"

    run(test)


def test_a_burst_of_clients_that_leave_loses_nothing() -> None:
    async def test(made: Scene) -> None:
        writers = []
        for number in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", made.port)
            writer.write(wanted("hello" * (1 + number % 4), 200, stream=True))
            writers.append(writer)
        for number, writer in enumerate(writers):
            await asyncio.sleep(0.01 * (number % 3))
            writer.close()
        await until(lambda: made.decoder.running == made.decoder.waiting == 0)
        with contextlib.suppress(ConnectionError):
            assert tokens_of(await ask(made.port, wanted(PROMPT, 4))) == made.single(PROMPT, 4)

    run(test)


def test_a_cancelled_completion_stops_at_its_next_token() -> None:
    class Counted:
        def __init__(self) -> None:
            self.tokens = 0

        async def layer(self, layer: int, layers: int) -> None:
            """Of no interest."""

        async def token(self, token: int) -> None:
            self.tokens += 1

    async def test(made: Scene) -> None:
        on = Counted()
        work = asyncio.create_task(made.decoder.complete("request", np.array(PROMPT), 900, on))
        await until(lambda: on.tokens >= 3)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert work.cancelled()
        assert on.tokens < 900
        assert made.decode_pool.account().leased == 0

    run(test)
