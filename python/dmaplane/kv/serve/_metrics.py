# SPDX-License-Identifier: MIT
"""What a decode server counts, and its text form for collectors.

Invariants: counters only grow; each has its unit last in its name. The text is the exposition
format that Prometheus and others scrape: a dozen lines of it are no reason to ask for a package.
"""

from __future__ import annotations

import dataclasses
from typing import Final


@dataclasses.dataclass(slots=True)
class Meter:
    """Counters of a server since its start. One event loop writes them."""

    requests: int = 0
    completed: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    transfers: int = 0
    transfer_bytes: int = 0
    transfer_chunks: int = 0
    transfer_stalls: int = 0
    transfer_seconds: float = 0.0
    checksum_seconds: float = 0.0
    prefill_seconds: float = 0.0
    first_token_seconds: float = 0.0


_HELP: Final = {
    "requests": "Completions asked for, the refused ones included",
    "completed": "Completions given in full",
    "refused": "Completions refused before they began",
    "failed": "Completions that ended with an error",
    "cancelled": "Completions whose client left",
    "prompt_tokens": "Tokens of the prompts taken in",
    "tokens": "Tokens decoded",
    "transfers": "KV transfers received in full",
    "transfer_bytes": "Bytes of KV cache received",
    "transfer_chunks": "Chunks of KV cache received",
    "transfer_stalls": "Times that a sender had to wait for credit",
    "transfer_seconds": "From announcement to publication of transfers, summed",
    "checksum_seconds": "Spent on checking what was received, summed",
    "prefill_seconds": "Spent by the prefill server on prompts, summed",
    "first_token_seconds": "From request to first token, summed over completed requests",
}


def exposition(meter: Meter | None, gauges: dict[str, float]) -> bytes:
    """All of it as text; @gauges are values of this moment, by name."""
    lines = []
    for field in dataclasses.fields(meter) if meter is not None else ():
        name = f"dmaplane_kv_{field.name}_total"
        lines.append(f"# HELP {name} {_HELP[field.name]}.")
        lines.append(f"# TYPE {name} counter")
        lines.append(f"{name} {getattr(meter, field.name)}")
    for gauge, value in gauges.items():
        lines.append(f"# TYPE dmaplane_kv_{gauge} gauge")
        lines.append(f"dmaplane_kv_{gauge} {value}")
    return ("\n".join(lines) + "\n").encode()


EXPOSITION_KIND: Final = "text/plain; version=0.0.4; charset=utf-8"
