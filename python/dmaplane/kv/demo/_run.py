# SPDX-License-Identifier: MIT
"""The demo from start to end: two servers, some prompts, the single process beside them.

Who owns what: run() owns both children and the single process's plane and pool, one after the
other: the servers have ended, and what they left was looked for, before the picture is drawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import dmaplane
from dmaplane._errors import InvalidError, NotAllowedError
from dmaplane.kv.demo._children import child, single
from dmaplane.kv.demo._client import Stream, complete
from dmaplane.kv.demo._outcome import Done, Outcome
from dmaplane.kv.demo._picture import draw
from dmaplane.kv.demo._traces import Before
from dmaplane.kv.serve import SiteSettings

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane._address import Require

Told = Callable[[str, int, int, int], None]
"""(stage, request, done, of how many)"""
_SEED: Final = 20260101


@dataclasses.dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demo does."""

    site: SiteSettings
    requests: int = 4
    prompt_tokens: int = 512
    max_tokens: int = 32
    peer: str | None = None
    """Where a prefill server listens already; else one is started here."""
    secret: str | None = dataclasses.field(default=None, repr=False)
    require: Require | None = None
    picture: str = "kv-demo.png"

    def __post_init__(self) -> None:
        for field, least, most in (
            ("requests", 1, 64),
            ("prompt_tokens", 2, 8192),
            ("max_tokens", 1, 1024),
        ):
            value = getattr(self, field)
            if not least <= value <= most:
                raise InvalidError(field, f"{value}", fix=f"{least} .. {most}")


def run(settings: DemoSettings, told: Told = lambda stage, request, done, all_: None) -> Outcome:
    """Does it all. Tokens that differ are in the Outcome; what makes it impossible is raised."""
    _check_writable(settings.picture)
    started = time.monotonic()
    with dmaplane.open(plane=settings.site.plane) as plane:
        reason = plane.reason  # and if there is no such plane, this is where it is said
    before = Before()
    with _servers(settings) as decode:
        before.watch(decode, both=settings.peer is None)
        prompts = _prompts(settings, decode["vocabulary"])
        host, _, port = decode["http"].rpartition(":")
        origin = time.monotonic()
        streams = asyncio.run(_ask(host, int(port), prompts, settings, told))
    left = before.left()
    one_process, control = _single(prompts, settings, told)
    outcome = Outcome(
        plane=decode["plane"],
        reason=reason,
        path=decode["path"],
        engine=decode["engine"],
        copied=decode["copied"],
        per_request=tuple(
            _done(stream, tokens, origin, len(prompt))
            for stream, tokens, prompt in zip(streams, one_process, prompts, strict=True)
        ),
        control_differs=control != one_process[0],
        left_behind=left,
        picture=os.path.abspath(settings.picture),
        seconds=time.monotonic() - started,
    )
    draw(outcome, settings.picture)
    return outcome


def _single(
    prompts: list[npt.NDArray[np.int64]], settings: DemoSettings, told: Told
) -> tuple[list[list[int]], list[int]]:
    """Tokens of the single process for each prompt, and of its control for the first."""
    count = settings.max_tokens
    answers = []
    with single(settings.site) as process:
        for number, prompt in enumerate(prompts):
            told("single", number, 0, 1)
            answers.append(process.tokens(prompt.tolist(), count, spoiled=False))
            told("single", number, 1, 1)
        return answers, process.tokens(prompts[0].tolist(), count, spoiled=True)


def _check_writable(picture: str) -> None:
    """Found out before the work, not after it."""
    folder = os.path.dirname(os.path.abspath(picture))
    if not os.access(folder, os.W_OK) or os.path.isdir(picture):
        raise InvalidError("picture", f"{picture} cannot be written", fix="another --picture")


def _prompts(settings: DemoSettings, vocabulary: int) -> list[npt.NDArray[np.int64]]:
    """Each a little shorter than the one before, so that blocks end in all places."""
    random = np.random.default_rng(_SEED)
    shortest = max(2, settings.prompt_tokens // 2)
    lengths = np.linspace(settings.prompt_tokens, shortest, settings.requests).astype(int)
    return [random.integers(0, vocabulary, int(length)) for length in lengths]


@contextlib.contextmanager
def _servers(settings: DemoSettings) -> Iterator[dict[str, Any]]:
    """Both servers, or the decode server alone; gives what that one said of itself."""
    words = _words(settings.site)
    if settings.require is not None:
        words += ["--require", settings.require]
    with contextlib.ExitStack() as stack:
        address = settings.peer
        if address is None:
            started = child("prefill", "--listen", "127.0.0.1:0", *words, secret=settings.secret)
            prefill = stack.enter_context(started)
            address = prefill.told["address"]
        elif settings.secret is None and not address.startswith(("127.", "localhost", "[::1]")):
            raise NotAllowedError(
                f"{address} is beyond this machine: give both sides the same secret, in a file for "
                "--secret-file or in the variable DMAPLANE_SECRET"
            )
        started = child(
            "decode", "--prefill", address, "--http", "127.0.0.1:0", *words, secret=settings.secret
        )
        yield stack.enter_context(started).told


def _words(site: SiteSettings) -> list[str]:
    words = ["--plane", site.plane, "--engine", site.engine, "--blocks", str(site.blocks)]
    for name, value in site.engine_settings:
        words += ["--set", f"{name}={value}"]
    if site.block_tokens is not None:
        words += ["--block-tokens", str(site.block_tokens)]
    if site.order is not None:
        words += ["--order", site.order]
    return words


async def _ask(
    host: str,
    port: int,
    prompts: list[npt.NDArray[np.int64]],
    settings: DemoSettings,
    told: Told,
) -> list[Stream]:
    """All prompts at once."""

    def heard(number: int) -> Callable[[str, int, int], None]:
        return lambda what, done, all_: told(what, number, done, all_)

    return list(
        await asyncio.gather(
            *(
                complete(
                    host,
                    port,
                    {"prompt": prompt.tolist(), "max_tokens": settings.max_tokens},
                    told=heard(number),
                )
                for number, prompt in enumerate(prompts)
            )
        )
    )


def _done(stream: Stream, single: list[int], origin: float, prompt_tokens: int) -> Done:
    """Moments of the decode server begin when it got the request: that is when it was sent."""
    assert stream.figures is not None
    figures = stream.figures
    sent = stream.sent - origin
    announced = sent + figures["began"]
    return Done(
        prompt_tokens=prompt_tokens,
        tokens=tuple(stream.tokens),
        identical=stream.tokens == single,
        sent=sent,
        announced=announced,
        computed=tuple(announced + one for one in figures["computed"]),
        layers=tuple(sent + one for one in figures["layers"]),
        complete=sent + figures["complete"],
        decoded=tuple(sent + one for one in figures["decoded"]),
        bytes=figures["bytes"],
        chunks=figures["chunks"],
        stalls=figures["stalls"],
        checksum_seconds=figures["checksum_seconds"],
        prefill_seconds=figures["prefill_seconds"],
        path=figures["path"],
    )
