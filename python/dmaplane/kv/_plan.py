# SPDX-License-Identifier: MIT
"""Plan: how the bytes of one layout get to their places in another; or why they cannot.

Bridged are order, block_tokens, rank and degree: the tokens and the heads are the same, only
elsewhere. Any other difference is refused when the plan is compiled, so before a byte moves.

A plan is a few numbers, O(1) whatever it will move, and the same for every layer. What it
makes for one transfer is an array of COPY: offsets within one layer's memory, in the order of the
tokens. No two of its copies overlap at the destination (as long as each block is given once),
and together they are exactly the tokens asked for of the heads that both ranks hold.

Two ways lead there. `copies` go from the source's memory as it is. Where such runs would be very
short (`is_scattered`) `gather` first brings one layer into the destination's form in a stage, and
`gathered_copies` go from there. A Plan is a value and owns nothing.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from dmaplane._errors import InvalidError, LayoutError
from dmaplane.kv._layout import POOL_BYTES_MAX, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Blocks = npt.NDArray[np.int64]
    Runs = npt.NDArray[np.int64]
    Copies = npt.NDArray[np.void]

COPY: Final = np.dtype([("source", "<u8"), ("destination", "<u8"), ("length", "<u8")])
"""One run of bytes: from, to, and how many. Offsets within one layer's memory."""
_SOURCE, _DESTINATION, _LENGTH = range(3)
"""Which row of Runs: the same as COPY, as three rows of numbers, which numpy is quick with."""
SCATTERED_BYTES: Final = 4096
"""Shorter runs cost a network more than gathering them costs the sender."""

_CACHED_BYTES: Final = 512 << 10
"""gather() takes so much at a time: what it copies twice is still in the cache then."""
_FIXED: Final = ("layers", "kv_heads", "head_size", "dtype", "kind", "model")


@dataclasses.dataclass(frozen=True, slots=True)
class _Axis:
    """One loop around a run: how often, and how far apart on either side."""

    count: int
    source: int
    destination: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Side:
    """Where the shared heads are in one block of a layout. In bytes, but for `tokens`."""

    block: int
    tokens: int
    start: int
    kv: int
    token: int
    head: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Weave:
    """The loops from one side to the other, those that run along memory on both taken out."""

    source: _Side
    destination: _Side
    along: bool
    """Tokens that follow one another do so in memory too, on both sides."""
    unit: int
    """Bytes of one token in a run."""
    outer: tuple[_Axis, ...]
    """Around the tokens."""
    inner: tuple[_Axis, ...]
    """Within one token; none if along."""
    whole: tuple[_Axis, ...]
    """Around the runs of a whole block, of which both sides have the same."""
    whole_bytes: int
    """Of one run there; 0 where blocks differ in size."""

    @property
    def run_bytes(self) -> int:
        if self.whole_bytes:
            return self.whole_bytes
        if self.along:
            return self.unit * min(self.source.tokens, self.destination.tokens)
        return self.unit

    def runs(self, first: int, end: int, source: Blocks, destination: Blocks) -> Runs:
        """Those of the tokens first .. end - 1, at least one. Block lists begin at token 0."""
        lists = (source, destination)
        if not self.along:
            rows = self._by_token(first, end, lists)
        elif self.whole_bytes:
            rows = self._by_block(first, end, lists)
        else:
            rows = self._by_segment(first, end, lists)
        return _joined(rows)

    def _by_block(self, first: int, end: int, lists: tuple[Blocks, Blocks]) -> Runs:
        """Whole blocks, and what there is of one before and of one after them."""
        size = self.source.tokens
        begin, stop = -(-first // size), end // size
        if begin > stop:
            return self._by_segment(first, end, lists)
        edge, middle = _turns(self.outer), (stop - begin) * _turns(self.whole)
        before = edge if first % size else 0
        rows = _empty(before + middle + (edge if end % size else 0))
        whole = rows[:, before : before + middle]
        for which, side, blocks, steps in self._sides(lists, self.whole):
            at = blocks[begin:stop] * side.block
            at += side.start
            np.add(at[:, None], steps, out=whole[which].reshape(len(at), len(steps)))
        whole[_LENGTH] = self.whole_bytes
        if first % size:
            rows[:, :before] = self._by_segment(first, begin * size, lists)
        if end % size:
            rows[:, before + middle :] = self._by_segment(stop * size, end, lists)
        return rows

    def _by_segment(self, first: int, end: int, lists: tuple[Blocks, Blocks]) -> Runs:
        """Runs of tokens that lie in one block on either side."""
        starts = _edges(first, end, self.source.tokens, self.destination.tokens)
        shape = len(starts), _turns(self.outer)
        rows = _empty(shape[0] * shape[1])
        for which, side, blocks, steps in self._sides(lists, self.outer):
            block = starts // side.tokens
            at = blocks[block] * side.block
            block *= side.tokens * side.token
            at -= block  # so that the token counts from the list's beginning
            at += starts * side.token
            at += side.start
            np.add(at[:, None], steps, out=rows[which].reshape(shape))
        tokens = np.diff(starts, append=end)
        np.multiply(tokens[:, None], self.unit, out=rows[_LENGTH].reshape(shape))
        return rows

    def _by_token(self, first: int, end: int, lists: tuple[Blocks, Blocks]) -> Runs:
        """A token at a time, in the order of the destination's memory."""
        here = self.destination.tokens
        lowest, highest = first // here, -(-end // here)
        token = np.arange(lowest * here, highest * here, dtype=np.int64)
        turns = _turns(self.outer), _turns(self.inner)
        shape = highest - lowest, turns[0], here, turns[1]
        rows = _empty(len(token) * turns[0] * turns[1])
        inner = _steps(self.inner)
        for (which, side, blocks, steps), within in zip(
            self._sides(lists, self.outer), inner, strict=True
        ):
            block = np.minimum(token // side.tokens, len(blocks) - 1)
            at = blocks[block] * side.block + token % side.tokens * side.token + side.start
            np.add(
                at.reshape(-1, 1, here, 1),
                steps[:, None, None] + within,
                out=rows[which].reshape(shape),
            )
        rows[_LENGTH] = self.unit
        asked = (token >= first) & (token < end)
        if asked.all():
            return rows
        kept = np.broadcast_to(asked.reshape(-1, 1, here, 1), shape)
        return np.take(rows, np.flatnonzero(kept), axis=1)

    def _sides(
        self, lists: tuple[Blocks, Blocks], axes: tuple[_Axis, ...]
    ) -> Iterator[tuple[int, _Side, Blocks, Blocks]]:
        """For either side: which row, itself, its blocks, and where the loops lead there."""
        which = (_SOURCE, _DESTINATION)
        return zip(which, (self.source, self.destination), lists, _steps(axes), strict=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How to get from one layout to another. Made by compile_plan()."""

    source: Layout
    destination: Layout
    stage: Layout
    """The destination's form, with only the heads that this source has."""
    first_head: int
    """The first of the shared heads, counted in the whole model."""
    heads: int
    """How many heads both sides hold."""
    _direct: _Weave = dataclasses.field(repr=False)
    _gathered: _Weave = dataclasses.field(repr=False)

    @property
    def is_identity(self) -> bool:
        """A block of the one side is, byte for byte, a block of the other."""
        return self._direct.whole_bytes == self.source.block_bytes == self.destination.block_bytes

    @property
    def run_bytes(self) -> int:
        """Bytes of one copy, of whole blocks that do not follow one another."""
        return self._direct.run_bytes

    @property
    def is_scattered(self) -> bool:
        """Runs are short, and would be longer from a stage: gather() first."""
        return self.run_bytes < min(SCATTERED_BYTES, self._gathered.run_bytes)

    def stage_bytes(self, tokens: int, *, first_token: int = 0) -> int:
        """What gather() fills for one layer."""
        _, end = _span(tokens, first_token)
        blocks = self.stage.blocks_for(end) - first_token // self.stage.block_tokens
        return self.stage.layer_bytes(blocks) if tokens else 0

    def copies(
        self,
        tokens: int,
        source_blocks: Blocks,
        destination_blocks: Blocks,
        *,
        first_token: int = 0,
    ) -> Copies:
        """An array of COPY that moves @tokens from @first_token on, for each layer the same.

        Both lists of blocks begin at token 0, and name each block once. Runs that follow one
        another on both sides are one. Costs a few passes over the array; no loop.
        """
        return _packed(
            self.runs(tokens, source_blocks, destination_blocks, first_token=first_token)
        )

    def runs(
        self,
        tokens: int,
        source_blocks: Blocks,
        destination_blocks: Blocks,
        *,
        first_token: int = 0,
    ) -> Runs:
        """The same as three rows: from, to, and how many bytes."""
        first, end = _span(tokens, first_token)
        source = _blocks("source_blocks", source_blocks, self.source, end)
        destination = _blocks("destination_blocks", destination_blocks, self.destination, end)
        return self._direct.runs(first, end, source, destination) if tokens else _empty(0)

    def run(
        self, tokens: int, source_blocks: Blocks, destination_blocks: Blocks
    ) -> tuple[int, int, int] | None:
        """What runs() would give where that is one run of whole blocks; found without arrays.

        None where it is not, or cannot be told so quickly.
        """
        count, rest = divmod(tokens, self.source.block_tokens)
        if rest or count <= 0 or not self.is_identity:
            return None
        near = _in_a_row(source_blocks, count, self.source)
        far = _in_a_row(destination_blocks, count, self.destination)
        if near is None or far is None:
            return None
        size = self._direct.whole_bytes
        return near * size, far * size, count * size

    def gather(
        self,
        layer: npt.NDArray[Any],
        tokens: int,
        source_blocks: Blocks,
        out: npt.NDArray[np.uint8],
        *,
        first_token: int = 0,
    ) -> None:
        """Brings one layer of the source into the destination's form, in @out.

        @layer is the pool's array [blocks, *block_shape]; @out has stage_bytes(tokens): block
        by block of `stage`, from the one with @first_token on. Bytes of @out that no token
        asked for has are left as they are, or not: nobody sends them. Reads and writes each byte
        twice.
        """
        first, end = _span(tokens, first_token)
        length = self.stage_bytes(tokens, first_token=first_token)
        if layer.shape[1:] != self.source.block_shape or layer.dtype != self.source.numpy_dtype:
            raise InvalidError(
                "layer", f"{layer.dtype} {layer.shape}", fix="Pool.layer(n) of the source's layout"
            )
        blocks = _blocks("source_blocks", source_blocks, self.source, end, limit=len(layer))
        if out.dtype != np.uint8 or out.ndim != 1 or len(out) < length or not _flat(out):
            raise InvalidError("out", f"{out.dtype} {out.shape}", fix=f"{length} bytes of uint8")
        if not tokens:
            return
        step = math.gcd(self.source.block_tokens, self.destination.block_tokens)
        near = self.first_head - self.source.first_head
        source = _pieces(layer, self.source, step)[..., near : near + self.heads, :]
        staged = out[:length].view(self.stage.numpy_dtype).reshape(-1, *self.stage.block_shape)
        target = _pieces(staged, self.stage, step)
        per_source, per_stage = source.shape[1], target.shape[1]
        skipped = first // self.stage.block_tokens
        at_once = max(1, _CACHED_BYTES // (step * self.stage.token_bytes))
        stop = -(-end // step)
        for begin in range(first // step, stop, at_once):
            piece = np.arange(begin, min(begin + at_once, stop))
            taken = source[blocks[piece // per_source], piece % per_source]
            target[piece // per_stage - skipped, piece % per_stage] = taken

    def gathered_copies(
        self,
        tokens: int,
        destination_blocks: Blocks,
        *,
        stage_offset: int = 0,
        first_token: int = 0,
    ) -> Copies:
        """As copies(), from what gather() left @stage_offset bytes into a stage."""
        room = POOL_BYTES_MAX - self.stage_bytes(tokens, first_token=first_token)
        if not 0 <= stage_offset <= room:
            raise InvalidError("stage_offset", f"{stage_offset}", fix="0 or more, inside the stage")
        rows = self.gathered_runs(tokens, destination_blocks, first_token=first_token)
        rows[_SOURCE] += stage_offset
        return _packed(rows)

    def gathered_runs(
        self, tokens: int, destination_blocks: Blocks, *, first_token: int = 0
    ) -> Runs:
        """As runs(), from what gather() left at the beginning of a stage."""
        first, end = _span(tokens, first_token)
        destination = _blocks("destination_blocks", destination_blocks, self.destination, end)
        if not tokens:
            return _empty(0)
        skipped = first // self.stage.block_tokens
        staged = np.arange(self.stage.blocks_for(end), dtype=np.int64) - skipped
        return self._gathered.runs(first, end, staged, destination)

    def apply(
        self,
        source_layer: npt.NDArray[Any],
        destination_layer: npt.NDArray[Any],
        copies: Copies,
    ) -> None:
        """Does @copies within this process, from one layer's memory to another's.

        Takes arrays of any type, contiguous; one pass per length there is among the copies.
        """
        source = _memory("source_layer", source_layer)
        destination = _memory("destination_layer", destination_layer)
        if not len(copies):
            return
        length = copies["length"]
        for field, memory in (("source", source), ("destination", destination)):
            if int(length.max()) > len(memory) or (copies[field] > len(memory) - length).any():
                raise InvalidError(
                    "copies", f"they reach beyond the {field}'s {len(memory)} bytes", fix="its plan"
                )
        for each in np.unique(length).tolist():
            some = copies[length == each]
            _windows(destination, each)[some["destination"]] = _windows(source, each)[
                some["source"]
            ]


def compile_plan(
    source: Layout,
    destination: Layout,
    *,
    here: Literal["source", "destination"] = "source",
) -> Plan:
    """The plan from @source to @destination, or LayoutError with all that cannot be bridged.

    @here says which of the two is ours, for the error's words only. Ranks that hold the same
    head may all send it; sources_of() says which of them has to.
    """
    ours, theirs = (source, destination) if here == "source" else (destination, source)
    problems = [each for each in ours.difference(theirs) if each[0] in _FIXED]
    first = max(source.first_head, destination.first_head)
    heads = min(source.first_head + source.heads, destination.first_head + destination.heads) - max(
        source.first_head, destination.first_head
    )
    if source.kv_heads == destination.kv_heads and heads <= 0:
        problems.append(("heads", _heads_text(ours), _heads_text(theirs)))
    if problems:
        raise LayoutError("no plan bridges these KV caches", differences=tuple(problems))
    stage = dataclasses.replace(destination, kv_heads=heads, rank=0, degree=1)
    far = _side(destination, first - destination.first_head)
    near = _side(source, first - source.first_head)
    return Plan(
        source=source,
        destination=destination,
        stage=stage,
        first_head=first,
        heads=heads,
        _direct=_weave(near, far, destination, heads),
        _gathered=_weave(_side(stage, 0), far, destination, heads),
    )


def sources_of(source_degree: int, destination: Layout) -> tuple[int, ...]:
    """Which ranks of @source_degree have to send so that @destination gets each head once.

    Where several hold the same head, destinations that do too take different ones.
    """
    source = destination.for_rank(0, source_degree)
    heads = range(destination.first_head, destination.first_head + destination.heads)
    if source_degree <= source.kv_heads:
        return tuple(range(heads[0] // source.heads, heads[-1] // source.heads + 1))
    twins = source_degree // source.kv_heads
    peers = max(1, destination.degree // destination.kv_heads)
    return tuple(head * twins + destination.rank % peers % twins for head in heads)


def _heads_text(layout: Layout) -> str:
    last = layout.first_head + layout.heads - 1
    return f"{layout.first_head}..{last} (rank {layout.rank} of {layout.degree})"


def _side(layout: Layout, skipped_heads: int) -> _Side:
    strides = layout.strides()
    return _Side(
        block=layout.block_bytes,
        tokens=layout.block_tokens,
        start=skipped_heads * strides["head"],
        kv=strides["kv"],
        token=strides["token"],
        head=strides["head"],
    )


def _weave(source: _Side, destination: _Side, layout: Layout, heads: int) -> _Weave:
    """The loops between two sides, in the order of the destination's memory."""
    kv = _Axis(1 if layout.kind == "mla" else 2, source.kv, destination.kv)
    head = _Axis(heads, source.head, destination.head)
    token = _Axis(destination.tokens, source.token, destination.token)
    vector = layout.head_size * layout.item_bytes
    before, after = ((kv, head), ()) if layout.order == "HND" else ((kv,), (head,))
    inner, unit = _collapsed(after, vector)
    along = not inner and token.source == token.destination == unit
    outer = tuple(axis for axis in before if axis.count > 1)
    whole: tuple[_Axis, ...] = ()
    whole_bytes = 0
    if source.tokens == destination.tokens:
        whole, whole_bytes = _collapsed((*before, token, *after), vector)
    return _Weave(
        source=source,
        destination=destination,
        along=along,
        unit=unit,
        outer=outer,
        inner=inner,
        whole=whole,
        whole_bytes=whole_bytes,
    )


def _collapsed(axes: tuple[_Axis, ...], length: int) -> tuple[tuple[_Axis, ...], int]:
    """Without the innermost loops that only go along memory; and how long a run is then."""
    left = [axis for axis in axes if axis.count > 1]
    while left and left[-1].source == left[-1].destination == length:
        length *= left.pop().count
    return tuple(left), length


def _steps(axes: tuple[_Axis, ...]) -> tuple[Blocks, Blocks]:
    """Where the loops lead, on both sides, from the first place of all."""
    source = destination = np.zeros(1, dtype=np.int64)
    for axis in axes:
        count = np.arange(axis.count, dtype=np.int64)
        source = (source[:, None] + count * axis.source).ravel()
        destination = (destination[:, None] + count * axis.destination).ravel()
    return source, destination


def _turns(axes: tuple[_Axis, ...]) -> int:
    return math.prod(axis.count for axis in axes)


def _edges(first: int, end: int, one: int, other: int) -> Blocks:
    """@first, and all multiples of either number between it and @end."""
    within = [
        np.arange((first // step + 1) * step, end, step, dtype=np.int64)
        for step in ({min(one, other)} if max(one, other) % min(one, other) == 0 else (one, other))
    ]
    edges = within[0] if len(within) == 1 else np.union1d(*within)
    return np.concatenate((np.array([first], dtype=np.int64), edges))


def _empty(count: int) -> Runs:
    return np.empty((3, count), dtype=np.int64)


def _in_a_row(blocks: Blocks, count: int, layout: Layout) -> int | None:
    """The first of them, if they follow one another and their offsets have 63 bits."""
    if len(blocks) < count:
        return None
    first, last = int(blocks[0]), int(blocks[count - 1])
    if first < 0 or last - first != count - 1 or last >= POOL_BYTES_MAX // layout.block_bytes:
        return None
    rising = (blocks[1:count] > blocks[: count - 1]).all()
    return first if rising else None


def _joined(rows: Runs) -> Runs:
    """@rows, where each that goes on from the one before is part of it."""
    source, destination, length = rows
    begins = np.ones(len(length), dtype=np.bool_)
    step = source[1:] - source[:-1]
    np.not_equal(step, length[:-1], out=begins[1:])
    np.subtract(destination[1:], destination[:-1], out=step)
    begins[1:] |= step != length[:-1]
    if begins.all():
        return rows
    at = np.flatnonzero(begins)
    joined: Runs = np.take(rows, at, axis=1)  # by rows: an index would make columns of them
    joined[_LENGTH] = np.add.reduceat(length, at)
    return joined


def _packed(rows: Runs) -> Copies:
    packed = np.empty(rows.shape[1], dtype=COPY)
    packed["source"], packed["destination"], packed["length"] = rows
    return packed


def _span(tokens: int, first_token: int) -> tuple[int, int]:
    for field, value in (("tokens", tokens), ("first_token", first_token)):
        if not 0 <= value <= POOL_BYTES_MAX:
            raise InvalidError(field, f"{value}", fix="0 or more")
    return first_token, first_token + tokens


def _blocks(
    field: str, blocks: Blocks, layout: Layout, tokens: int, *, limit: int | None = None
) -> Blocks:
    """The blocks that hold @tokens, checked: none negative, none whose offset has no 63 bits."""
    given = np.asarray(blocks)
    needed = layout.blocks_for(tokens)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise InvalidError(field, f"{given.dtype} {given.shape}", fix="one row of whole numbers")
    if len(given) < needed:
        raise InvalidError(
            field, f"{len(given)} for {tokens} tokens", fix=f"{needed} of {layout.block_tokens}"
        )
    given = given[:needed]
    most = POOL_BYTES_MAX // layout.block_bytes if limit is None else limit
    if needed and (int(given.min()) < 0 or int(given.max()) >= most):
        bad = int(np.flatnonzero((given < 0) | (given >= most))[0])
        raise InvalidError(f"{field}[{bad}]", f"{given[bad]}", fix=f"0 .. {most - 1}")
    return given.astype(np.int64, copy=False)


def _pieces(array: npt.NDArray[Any], layout: Layout, step: int) -> npt.NDArray[Any]:
    """A view [blocks, pieces of a block, kv, step tokens, heads, size] of whole blocks."""
    if layout.kind == "mla":
        array = array[:, None, :, None, :]
    elif layout.order == "HND":
        array = array.swapaxes(2, 3)
    blocks, kv, tokens, heads, size = array.shape
    # One axis becomes two: numpy never has to copy for that.
    split = array.reshape(blocks, kv, tokens // step, step, heads, size)
    pieces: npt.NDArray[Any] = split.swapaxes(1, 2)
    return pieces


def _flat(array: npt.NDArray[Any]) -> bool:
    return bool(array.flags.c_contiguous)


def _memory(field: str, array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if not _flat(array):
        raise InvalidError(field, "not contiguous", fix="Pool.layer(n), or its bytes")
    return array.reshape(-1).view(np.uint8)


def _windows(memory: npt.NDArray[np.uint8], length: int) -> npt.NDArray[np.uint8]:
    """@length bytes from each place of @memory on; overlapping views of it, no copy."""
    return np.lib.stride_tricks.as_strided(
        memory, shape=(len(memory) - length + 1, length), strides=(1, 1)
    )
