# SPDX-License-Identifier: MIT
"""Window: what a sender has under way, in chunks and in rows, until all of it has completed.

A Posting is some chunks of one transfer as rows, and what is known of each row. It is in the window
from when it is made until each of its rows has completed, or was dropped before it was
pushed. user_data of a row says which posting, and which row of it.

Invariants: `chunks` is the chunks of all postings not complete; rows in flight never take the
slots that messages need.

Who owns what. The window owns the postings; a posting knows its transfer, and the transfer its
postings, so that either can be asked. It pushes to the channel and takes nothing from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from dmaplane import _abi
from dmaplane._errors import InvalidError
from dmaplane.kv import _sums, _wire
from dmaplane.kv._conversation import KIND_SHIFT, RECVS, SENDS, WRITE
from dmaplane.kv._template import LENGTH, USER_DATA

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane._channel import Channel
    from dmaplane.kv._outgoing import Outgoing

_ROW_BITS: Final = 24
"""Of user_data: the row in its posting; the posting is above it."""
_POSTING_MASK: Final = 0xFFFFFFFF


def user_data_of(number: int, count: int) -> int:
    """Of the first of so many rows of posting @number."""
    if count >> _ROW_BITS:
        raise InvalidError("chunk_bytes", f"{count} rows at once", fix="smaller chunks")
    return (WRITE << KIND_SHIFT) | (number << _ROW_BITS)


class Written(NamedTuple):
    """What completions say of one posting."""

    posting: Posting
    chunks: npt.NDArray[np.int64]
    """Of its chunks, those that are complete now and were not before."""
    result: int
    """0, or the errno of a row that failed."""
    failed: int
    """The chunk that row is of."""


class Posting:
    """Chunks first .. first + count - 1 of a transfer, as rows."""

    __slots__ = (
        "crcs",
        "done",
        "first",
        "left",
        "number",
        "of_chunk",
        "outgoing",
        "pushed",
        "rows",
    )

    def __init__(
        self,
        outgoing: Outgoing,
        number: int,
        *,
        first: int,
        rows: npt.NDArray[np.uint64],
        counts: npt.NDArray[np.int64],
        of_chunk: npt.NDArray[np.int64],
    ) -> None:
        self.outgoing = outgoing
        self.number = number
        self.first = first
        """Ordinal in the transfer; those below count from here."""
        self.rows = rows
        self.left = counts
        """Rows of each chunk that have not completed."""
        self.of_chunk = of_chunk
        """Of each row."""
        self.crcs = np.zeros(len(rows), dtype=np.uint32)
        self.done = np.zeros(len(rows), dtype=np.bool_)
        self.pushed = 0

    @property
    def count(self) -> int:
        """Chunks of it."""
        return len(self.left)

    def user_data(self) -> list[int]:
        """Of the rows that are in flight."""
        there = np.flatnonzero(~self.done[: self.pushed])
        found: list[int] = self.rows[there, USER_DATA].tolist()
        return found

    def complete(
        self, index: npt.NDArray[np.int64], crcs: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.int64]:
        """These rows have completed; which of its chunks have with them."""
        self.done[index] = True
        self.crcs[index] = crcs
        if len(self.rows) == len(self.left):
            self.left[index] = 0
            return index
        before = self.left.copy()
        self.left -= np.bincount(self.of_chunk[index], minlength=len(self.left))
        return np.flatnonzero((self.left == 0) & (before != 0))

    def told(self, chunks: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        """An array of SUM for these chunks."""
        told = np.empty(len(chunks), dtype=_wire.SUM)
        told["ordinal"] = self.first + chunks
        told["crc"] = self._sums(chunks)
        return told

    def _sums(self, chunks: npt.NDArray[np.int64]) -> Any:
        """CRC32C of these chunks, of those of their rows."""
        if len(self.left) == len(self.rows):
            return self.crcs[chunks]
        chosen = np.isin(self.of_chunk, chunks)
        counts = np.bincount(self.of_chunk, minlength=len(self.left))[chunks]
        starts = np.cumsum(counts) - counts
        length = self.rows[chosen, LENGTH].astype(np.int64)
        return _sums.combined(self.crcs[chosen], length, starts)


class Window:
    """So many chunks at once."""

    def __init__(self, channel: Channel, chunks_max: int) -> None:
        self.chunks_max = chunks_max
        self.chunks = 0
        """Under way."""
        self._channel = channel
        self._postings: dict[int, Posting] = {}
        self._next = 0
        self._backlog: list[Posting] = []
        self.waiting = 0
        """Rows that are not pushed yet."""
        self._rows_max = channel.slots - 2 * (RECVS + SENDS)
        self.rows = 0
        """With the channel."""

    @property
    def room(self) -> int:
        """Chunks that can be added; none while as many rows wait as the channel has slots."""
        if self.rows + self.waiting >= self._rows_max:
            return 0
        return self.chunks_max - self.chunks

    def number(self) -> int:
        """For the next posting."""
        self._next = (self._next + 1) & _POSTING_MASK
        return self._next

    def add(self, posting: Posting) -> None:
        """Its rows go to the channel by the next push()."""
        self._postings[posting.number] = posting
        self.chunks += posting.count
        self._backlog.append(posting)
        self.waiting += len(posting.rows)

    def push(self) -> None:
        """Rows of all postings go to the channel at once, as far as it has room."""
        room = self._rows_max - self.rows
        if not self._backlog or room <= 0:
            return
        parts = []
        for posting in self._backlog:
            parts.append(posting.rows[posting.pushed : posting.pushed + room])
            room -= len(parts[-1])
            if not room:
                break
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        # They are of a template that was checked when it was made.
        count = self._channel._push_rows(rows.reshape(-1).view(_abi.SUBMISSION))
        self.rows += count
        self.waiting -= count
        while count:
            posting = self._backlog[0]
            taken = min(count, len(posting.rows) - posting.pushed)
            posting.pushed += taken
            count -= taken
            if posting.pushed == len(posting.rows):
                self._backlog.pop(0)

    def complete(self, rows: npt.NDArray[np.void]) -> list[Written]:
        """Completions of rows: what became of each posting they are of."""
        told = rows["user_data"].astype(np.int64)
        numbers = (told >> _ROW_BITS) & _POSTING_MASK
        self.rows -= len(rows)
        written = []
        first = int(numbers[0])
        several = not (numbers == first).all()
        for number in np.unique(numbers).tolist() if several else (first,):
            posting = self._postings[number]
            mine = numbers == number if several else slice(None)
            some = rows[mine]
            index = told[mine] & ((1 << _ROW_BITS) - 1)
            chunks = posting.complete(index, some["checksum"])
            self.chunks -= len(chunks)
            result = failed = 0
            if some["result"].any():
                at = int(np.flatnonzero(some["result"])[0])
                result, failed = int(some["result"][at]), int(posting.of_chunk[index[at]])
            self._forget_if_complete(posting)
            written.append(Written(posting, chunks, result, failed))
        return written

    def drop(self, outgoing: Outgoing) -> list[int]:
        """Rows of it that were not pushed never will be; user_data of those that are in flight."""
        self._backlog = [each for each in self._backlog if each.outgoing is not outgoing]
        self.waiting = sum(len(each.rows) - each.pushed for each in self._backlog)
        under_way: list[int] = []
        for posting in list(outgoing._postings.values()):
            under_way += posting.user_data()
            never = np.arange(posting.pushed, len(posting.rows))
            self.chunks -= len(posting.complete(never, np.zeros(len(never), dtype=np.uint32)))
            self._forget_if_complete(posting)
        return under_way

    def _forget_if_complete(self, posting: Posting) -> None:
        if not posting.left.any() and self._postings.pop(posting.number, None) is not None:
            del posting.outgoing._postings[posting.number]
