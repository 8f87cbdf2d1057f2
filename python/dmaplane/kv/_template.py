# SPDX-License-Identifier: MIT
"""Template: the rows of some layers in a row, made once for a transfer.

Every layer of a transfer goes by the same pieces. So a posting is a slice of the template, with
one addition for where its first layer lies on either side: what is posted costs the same
however many chunks and layers it is.

Values; owner of nothing. Words are the 64-bit words of struct dmp_submission.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dmaplane import _abi

if TYPE_CHECKING:
    import numpy.typing as npt

USER_DATA: Final = 1
SOURCE_OFFSET: Final = 4
TARGET_OFFSET: Final = 5
LENGTH: Final = 6
IMMEDIATE: Final = 7
_ROWS_MAX: Final = 512
"""No more layers than have so many rows: a template stays small beside what it is of."""


class Template:
    """Rows of as many chunks as `starts` has, less one: WRITEs, and last in each a WRITE_IMM.

    Layers lie @near_step and @far_step apart. user_data and immediates count rows and chunks.
    """

    __slots__ = ("chunks", "counts", "of_chunk", "starts", "words")

    def __init__(
        self,
        rows: npt.NDArray[np.void],
        starts: npt.NDArray[np.int64],
        *,
        layers: int,
        near_step: int,
        far_step: int,
    ) -> None:
        layers = max(1, min(layers, _ROWS_MAX // len(rows)))
        words = words_of(rows, starts)
        if layers > 1:
            words = np.tile(words, (layers, 1))
            number = np.repeat(np.arange(layers, dtype=np.uint64), len(rows))
            words[:, SOURCE_OFFSET] += number * np.uint64(near_step)
            words[:, TARGET_OFFSET] += number * np.uint64(far_step)
        words[:, USER_DATA] = np.arange(len(words))
        self.counts = np.tile(np.diff(starts), layers)
        """Rows of each chunk."""
        self.chunks = len(self.counts)
        self.starts = np.append(0, np.cumsum(self.counts))
        words[self.starts[1:] - 1, IMMEDIATE] = np.arange(self.chunks)
        self.of_chunk = np.repeat(np.arange(self.chunks), self.counts)
        self.words = words

    def move(self, *, far: int) -> None:
        """All of it is so much further on at the destination."""
        self.words[:, TARGET_OFFSET] += np.uint64(far)

    def cut(
        self, chunk: int, end: int, *, near: int, far: int, immediate: int, user_data: int
    ) -> npt.NDArray[np.uint64]:
        """Rows of these chunks: offsets from @near and @far on, numbers from the others on."""
        starts = self.starts[chunk : end + 1]
        first = int(starts[0])
        rows: npt.NDArray[np.uint64] = self.words[first : int(starts[-1])].copy()
        rows[:, USER_DATA] += np.uint64(user_data - first)
        rows[:, SOURCE_OFFSET] += np.uint64(near)
        rows[:, TARGET_OFFSET] += np.uint64(far)
        rows[starts[1:] - 1 - first, IMMEDIATE] += np.uint64(immediate - chunk)
        return rows


def words_of(rows: npt.NDArray[np.void], starts: npt.NDArray[np.int64]) -> Any:
    """Rows of a layer as words: WRITEs, and at the end of each chunk a WRITE_IMM."""
    rows["operation"][starts[1:] - 1] = _abi.OP_WRITE_IMM
    return rows.view(np.uint64).reshape(len(rows), -1)
