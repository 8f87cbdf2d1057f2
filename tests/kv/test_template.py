# SPDX-License-Identifier: MIT
"""A template is the rows of a transfer whatever is cut from it, and wherever it was moved to."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from couple import HND, NHD, couple, run

from dmaplane import _abi
from dmaplane.kv import Layout
from dmaplane.kv._template import Template

ROW_BYTES = 1024


def rows_of(lengths: list[int]) -> Any:
    rows = np.zeros(len(lengths), dtype=_abi.SUBMISSION)
    rows["operation"] = _abi.OP_WRITE
    rows["length_bytes"] = lengths
    rows["source_offset"] = np.arange(len(lengths)) * ROW_BYTES
    rows["target_offset"] = np.arange(len(lengths)) * 2 * ROW_BYTES
    return rows


@pytest.mark.parametrize("starts", [[0, 1, 2, 3], [0, 2, 3], [0, 3]])
@pytest.mark.parametrize("layers", [1, 5])
def test_what_is_cut_is_every_row_once_with_its_layer(starts: list[int], layers: int) -> None:
    per = len(starts) - 1
    template = Template(
        rows_of([8, 9, 10]), np.array(starts), layers=layers, near_step=1 << 20, far_step=1 << 30
    )
    assert template.chunks == per * layers
    for first in range(template.chunks):
        for end in range(first + 1, template.chunks + 1):
            words = template.cut(first, end, near=5, far=7, immediate=40, user_data=100)
            rows = words.reshape(-1).view(_abi.SUBMISSION)
            chunks = np.arange(first, end)
            runs = [np.arange(starts[each], starts[each + 1]) for each in chunks % per]
            whose = np.concatenate(runs)
            layer = np.repeat(chunks // per, [len(each) for each in runs])
            near, far = whose * ROW_BYTES + (layer << 20), whose * 2 * ROW_BYTES + (layer << 30)
            assert rows["length_bytes"].tolist() == (whose + 8).tolist()
            assert rows["source_offset"].tolist() == (near + 5).tolist()
            assert rows["target_offset"].tolist() == (far + 7).tolist()
            assert rows["user_data"].tolist() == list(range(100, 100 + len(rows)))
            last = rows["operation"] == _abi.OP_WRITE_IMM
            assert last.sum() == len(chunks)
            assert rows["immediate"][last].tolist() == list(range(40, 40 + len(chunks)))
            assert not rows["immediate"][~last].any()


@pytest.mark.parametrize("target", [NHD, dataclasses.replace(NHD, block_tokens=64), HND])
@pytest.mark.parametrize("tokens", [1, 100, 128])
def test_a_draft_that_is_moved_is_what_would_have_been_made(target: Layout, tokens: int) -> None:
    async def main() -> None:
        async with couple(target=target) as both:
            pool, routes = both.sender.pool, both.sender._routes
            assert routes is not None
            with pool.lease(3 + pool.layout.blocks_for(tokens), holder="prefill") as lease:
                outgoing = both.sender.send("drafted", lease, tokens)
                draft = routes.draft(outgoing)
                layout = both.receiver.pool.layout
                chosen = np.arange(2, 2 + layout.blocks_for(tokens))
                made = routes.of(outgoing, chosen)  # it has no draft of its own yet
                outgoing._draft = draft
                if draft is not None:
                    moved = routes.of(outgoing, chosen)
                    assert moved is draft
                    assert (moved.template.words == made.template.words).all()
                    assert (moved.template.starts == made.template.starts).all()
                outgoing._draft = None
                await outgoing.abort("enough")

    run(main())
