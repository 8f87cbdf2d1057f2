# SPDX-License-Identifier: MIT
"""Completions as clients of OpenAI's API ask for them and read them.

Invariants: nothing of a request is believed before it was checked, and every refusal names the
field. What cannot be done here (sampling, several answers, stop words) is refused, never ignored;
a field that asks for what is done anyway passes.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dmaplane._errors import InvalidError
from dmaplane.kv.serve._http import HttpError
from dmaplane.kv.serve._text import tokens_of

if TYPE_CHECKING:
    import numpy.typing as npt

DEFAULT_TOKENS: Final = 16
_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "temperature": (0,),
    "top_p": (1,),
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "echo": (False,),
    "logprobs": (),
    "stop": ([],),
    "suffix": ("",),
    "logit_bias": ({},),
}
"""Fields that would change what is done, and the values besides null that change nothing."""
_IGNORED: Final = frozenset({"user", "seed", "stream_options"})
_KNOWN: Final = (
    frozenset(_NEUTRAL) | _IGNORED | {"model", "prompt", "max_tokens", "stream", "progress"}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """What the engine behind the server can do."""

    model: str
    vocabulary: int
    context_tokens: int
    """Prompt and answer together."""


@dataclasses.dataclass(frozen=True, slots=True)
class Completion:
    """What somebody wants: greedy decoding of so many tokens after the prompt."""

    prompt: npt.NDArray[np.int64]
    max_tokens: int
    stream: bool
    progress: bool = False
    """The stream tells of layers too, in comments, which clients skip."""


def parse(body: bytes, bounds: Bounds) -> Completion:
    """The request in @body; HttpError 400 or 404 that says what is wrong with it."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the body is no JSON: {error}", code="malformed_json") from None
    if not isinstance(asked, dict):
        raise HttpError(400, "the body has to be a JSON object", code="malformed_json")
    _check_fields(asked)
    model = asked.get("model")
    if model is not None and model != bounds.model:
        raise HttpError(
            404,
            f"this server has the model {bounds.model!r} alone",
            param="model",
            code="model_not_found",
        )
    for field in ("stream", "progress"):
        if not isinstance(asked.get(field, False), bool | type(None)):
            raise _wrong(field, "true or false")
    max_tokens = asked.get("max_tokens")
    if max_tokens is None:
        max_tokens = DEFAULT_TOKENS
    if type(max_tokens) is not int or max_tokens < 1:
        raise _wrong("max_tokens", "an integer of at least 1")
    prompt = _prompt(asked.get("prompt"), bounds)
    if len(prompt) + max_tokens > bounds.context_tokens:
        raise HttpError(
            400,
            f"{len(prompt)} tokens of prompt and max_tokens {max_tokens} are more than the "
            f"{bounds.context_tokens} of this server's context",
            param="prompt",
            code="context_length_exceeded",
        )
    return Completion(
        prompt=prompt,
        max_tokens=max_tokens,
        stream=bool(asked.get("stream")),
        progress=bool(asked.get("progress")),
    )


def _check_fields(asked: dict[str, Any]) -> None:
    for field, value in asked.items():
        if field not in _KNOWN:
            raise _wrong(field[:64], "left out: this server does not know it")
        neutral = _NEUTRAL.get(field)
        if neutral is None or value is None:
            continue
        # True == 1 in Python, and not in what somebody meant.
        if not any(
            value == one and (type(value) is bool) == (type(one) is bool) for one in neutral
        ):
            reason = "decoding here is greedy and gives one answer"
            right = f"left out or {json.dumps(neutral[0])}" if neutral else "left out"
            raise _wrong(field, f"{right}: {reason}")


def _wrong(field: str, right: str) -> HttpError:
    return HttpError(400, f"{field} has to be {right}", param=field, code="invalid_value")


def _prompt(prompt: object, bounds: Bounds) -> npt.NDArray[np.int64]:
    """Token ids, of text or as they were given."""
    if isinstance(prompt, str) and prompt:
        try:
            return tokens_of(prompt, vocabulary=bounds.vocabulary)
        except InvalidError as error:
            raise HttpError(400, str(error), param="prompt", code="invalid_value") from None
    right = f"text or a list of token ids from 0 to {bounds.vocabulary - 1}, not empty"
    if not isinstance(prompt, list) or not prompt or set(map(type, prompt)) != {int}:
        raise _wrong("prompt", right)
    try:
        tokens = np.array(prompt, dtype=np.int64)
    except OverflowError:
        raise _wrong("prompt", right) from None
    if tokens.min() < 0 or tokens.max() >= bounds.vocabulary:
        raise _wrong("prompt", right)
    return tokens


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What every piece of one answer says of itself."""

    request: str
    model: str
    created: int
    """Seconds since 1970."""

    def whole(
        self, text: str, tokens: list[int], *, prompt_tokens: int, figures: dict[str, Any]
    ) -> dict[str, Any]:
        """The answer in one piece."""
        made = self._piece(text, tokens, finished=True)
        made["usage"] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(tokens),
            "total_tokens": prompt_tokens + len(tokens),
        }
        made["dmaplane"] = figures
        return made

    def event(
        self, text: str, tokens: list[int], *, figures: dict[str, Any] | None = None
    ) -> bytes:
        """A piece of a stream; the last one has @figures."""
        made = self._piece(text, tokens, finished=figures is not None)
        if figures is not None:
            made["dmaplane"] = figures
        return sse(made)

    def _piece(self, text: str, tokens: list[int], *, finished: bool) -> dict[str, Any]:
        return {
            "id": self.request,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [
                {
                    "index": 0,
                    "text": text,
                    "token_ids": tokens,
                    "logprobs": None,
                    "finish_reason": "length" if finished else None,
                }
            ],
        }


def sse(content: dict[str, Any]) -> bytes:
    """One event of a stream of server-sent events."""
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


DONE: Final = b"data: [DONE]\n\n"
