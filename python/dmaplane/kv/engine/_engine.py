# SPDX-License-Identifier: MIT
"""What an engine is to those who serve with it: two calls over blocks of a pool.

An engine owns its weights and nothing else: what it computes for a request lives in the blocks
of that request's lease, so that these may have come from anywhere, and two threads may work on two
requests at once. The blocks of a lease, in order, hold the tokens from 0 on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from dmaplane._errors import InvalidError, LayoutError

if TYPE_CHECKING:
    from dmaplane.kv._layout import Layout
    from dmaplane.kv._lease import Lease
    from dmaplane.kv._pool import Pool

# What a pool may have otherwise than the engine would: no number changes by it.
_FREE: Final = frozenset({"block_tokens", "order"})


@dataclasses.dataclass(frozen=True, slots=True)
class Cache:
    """Where the K and V of one request are: blocks of a pool, which somebody else owns."""

    pool: Pool
    lease: Lease

    @property
    def tokens_max(self) -> int:
        """How many tokens the blocks have room for."""
        return len(self.lease.blocks) * self.pool.layout.block_tokens


class Engine(Protocol):
    """Computes the next token of a request. Its methods may be called from several threads.

    `layout` is what a pool for it looks like; other `block_tokens` or `order` serve as well.
    """

    @property
    def name(self) -> str:
        """What load() calls it."""
        ...

    @property
    def layout(self) -> Layout:
        """Of a pool for this engine; `model` names these weights and no others."""
        ...

    @property
    def vocabulary(self) -> int:
        """Tokens are 0 .. vocabulary - 1."""
        ...

    def prefill(
        self,
        tokens: NDArray[np.int64],
        cache: Cache,
        on_layer: Callable[[int], None] | None = None,
        *,
        first_token: int = 0,
    ) -> NDArray[np.float32]:
        """Writes K and V of @tokens into @cache, and gives the logits after the last of them.

        @on_layer(n) is called as soon as all of layer n is in the cache, and may be sent.
        @first_token: where they stand, if those before them are in the cache already.
        """
        ...

    def decode(
        self,
        token: int,
        position: int,
        cache: Cache,
        before_layer: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Writes K and V of one token at @position, and gives the logits after it.

        @before_layer(n) is called before layer n of the cache is looked at or written: there one
        waits for a transfer that is still on its way. What it raises ends the call.
        StaleEpochError, here and from prefill(), if the lease ended meanwhile.
        """
        ...

    def copied(self) -> str:
        """Which bytes of the cache are copied as a token is decoded, and why; "" if none are."""
        ...


def greedy(
    engine: Engine,
    cache: Cache,
    *,
    token: int,
    position: int,
    count: int,
    before_layer: Callable[[int], None] | None = None,
) -> Iterator[int]:
    """The @count likeliest tokens after @token, which stands at @position; one decode each.

    @before_layer is asked in the first one only: after it, every layer is there.
    """
    for step in range(count):
        waits = before_layer if step == 0 else None
        token = int(np.argmax(engine.decode(token, position + step, cache, waits)))
        yield token


def check_cache(layout: Layout, cache: Cache) -> None:
    """LayoutError unless @cache is of this engine's kind, model and format.

    StaleEpochError if its lease has ended: the blocks may be another's by now.
    """
    if cache.lease.pool is not cache.pool:
        raise InvalidError("cache", "the lease is of another pool", fix="Cache(lease.pool, lease)")
    cache.lease.check()
    theirs = cache.pool.layout
    if theirs == layout:
        return
    differences = tuple(one for one in layout.difference(theirs) if one[0] not in _FREE)
    if differences:
        raise LayoutError("the pool is not for this engine", differences=differences)


def check_tokens(
    tokens: NDArray[np.int64], cache: Cache, *, first_token: int, vocabulary: int
) -> NDArray[np.int64]:
    """@tokens as they are, checked as a whole: InvalidError names the first that is wrong."""
    given = np.asarray(tokens)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise InvalidError(
            "tokens", f"{given.ndim} axes of {given.dtype}", fix="one axis of whole numbers"
        )
    room = cache.tokens_max
    if len(given) == 0 or first_token < 0 or first_token + len(given) > room:
        raise InvalidError(
            "tokens",
            f"{len(given)} from {first_token} on, and the lease has room for {room}",
            fix="at least one, and pool.lease(layout.blocks_for(tokens))",
        )
    wrong = np.flatnonzero((given < 0) | (given >= vocabulary))
    if len(wrong):
        raise InvalidError(
            f"tokens[{wrong[0]}]", f"{given[wrong[0]]}", fix=f"0 .. {vocabulary - 1}"
        )
    return given.astype(np.int64, copy=False)
