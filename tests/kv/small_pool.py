# SPDX-License-Identifier: MIT
"""What a pool of a test is made of; conftest.py makes it."""

from __future__ import annotations

from dmaplane.kv import Layout

SMALL = Layout(layers=2, kv_heads=2, head_size=8, dtype="float32", block_tokens=4)
BLOCKS = 16


class Clock:
    """A time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now
