# SPDX-License-Identifier: MIT
"""Text as tokens, one a byte: what an engine without a vocabulary of its own can be fed with.

Invariants: 256 bytes are the first 256 tokens; a token beyond them is no text, and is shown as the
replacement character. Pieces of a stream join to what the whole would have been.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane._errors import InvalidError

if TYPE_CHECKING:
    import numpy.typing as npt

BYTES: Final = 256


def tokens_of(text: str, *, vocabulary: int) -> npt.NDArray[np.int64]:
    """One token a byte of UTF-8."""
    if vocabulary < BYTES:
        raise InvalidError(
            "prompt", f"a vocabulary of {vocabulary} has no token for each byte", fix="token ids"
        )
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise InvalidError(
            "prompt", "half of a surrogate pair is no character", fix="text, or token ids"
        ) from None
    return np.frombuffer(data, dtype=np.uint8).astype(np.int64)


class TextStream:
    """Tokens of one answer, as text, as they come."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """What can be shown now that @token is there; empty in the middle of a character."""
        if 0 <= token < BYTES:
            return self._decoder.decode(bytes((token,)))
        return self.end() + "\ufffd"

    def end(self) -> str:
        """What is left of a character that was never finished."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
