# SPDX-License-Identifier: MIT
"""Route: the way an accepted transfer goes, the same for every layer.

From the pool itself; or, where runs would be too short, by way of a stage, into which layers are
gathered in the destination's form.

Who owns what. Routes, one of each sender that has met its peer, owns the stages; a route borrows
one until the end of its transfer, and then another transfer may have it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

import numpy as np

from dmaplane.kv import _pieces
from dmaplane.kv._template import Template

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane._buffer import Buffer
    from dmaplane._endpoint import Endpoint
    from dmaplane._region import RemoteRegion
    from dmaplane.kv._outgoing import Outgoing
    from dmaplane.kv._plan import Plan
    from dmaplane.kv._pool import Pool
    from dmaplane.kv._wire import Hello

_STAGE_SLOTS: Final = 2
"""Layers of one transfer that are gathered or on their way at once."""

_DRAFT_BLOCKS_MAX: Final = 4096


@dataclasses.dataclass(slots=True)
class Route:
    """Of one transfer."""

    template: Template
    """Of layers at offset 0 on both sides."""
    stage: Buffer | None
    stage_bytes: int
    """Of one slot of it."""
    free_slots: list[int]


class Routes:
    """From one pool to the peer's."""

    def __init__(
        self, endpoint: Endpoint, pool: Pool, plan: Plan, peer: Hello, remote: RemoteRegion
    ) -> None:
        self._endpoint = endpoint
        self._pool = pool
        self._plan = plan
        self._peer = peer
        self._remote = remote
        self._stages: list[Buffer] = []
        """Those that no transfer has."""

    def draft(self, outgoing: Outgoing) -> Route | None:
        """To the first blocks there, made while the peer chooses: see of().

        None if it would have to borrow a stage, or takes long.
        """
        count = self._peer.layout.blocks_for(outgoing._announce.tokens)
        if self._plan.is_scattered or count > _DRAFT_BLOCKS_MAX:
            return None
        return self._made(outgoing, np.arange(count))

    def of(self, outgoing: Outgoing, chosen: npt.NDArray[np.int64]) -> Route:
        """To the blocks @chosen there, which rise.

        Blocks in a row are the draft's, further on: the same runs in the same chunks.
        """
        draft, outgoing._draft = outgoing._draft, None
        first = int(chosen[0])
        if draft is None or int(chosen[-1]) - first != len(chosen) - 1:
            return self._made(outgoing, chosen)
        draft.template.move(far=first * self._peer.layout.block_bytes)
        return draft

    def _made(self, outgoing: Outgoing, chosen: npt.NDArray[np.int64]) -> Route:
        plan, pool, peer, announce = self._plan, self._pool, self._peer, outgoing._announce
        stage, stage_bytes = None, 0
        near: Buffer = pool.buffer
        if plan.is_scattered:
            pieces = _pieces.staged(plan, announce.tokens, chosen, announce.chunk_bytes)
            stage_bytes = plan.stage_bytes(announce.tokens)
            near = stage = self._stage(_STAGE_SLOTS * stage_bytes)
        else:
            ours = outgoing._lease.blocks[: pool.layout.blocks_for(announce.tokens)]
            pieces = _pieces.direct(plan, announce.tokens, ours, chosen, announce.chunk_bytes)
        rows = self._endpoint.rows(
            "write",
            near,
            self._remote,
            local_offsets=pieces.near,
            remote_offsets=pieces.far + peer.first_byte,
            lengths=pieces.length,
            checksum=announce.checksum,
        )
        # From a stage, and where each layer's sums are held back, a layer at a time.
        apart = stage is not None or outgoing._source_sums is not None
        template = Template(
            rows,
            pieces.starts,
            layers=1 if apart else announce.layers,
            near_step=pool.layout.layer_bytes(pool.blocks),
            far_step=peer.layer_bytes,
        )
        return Route(template, stage, stage_bytes, list(range(_STAGE_SLOTS)))

    def _stage(self, length_bytes: int) -> Buffer:
        """A buffer no other transfer has: one that is free again, or a new one."""
        for stage in self._stages:
            if len(stage) >= length_bytes:
                self._stages.remove(stage)
                return stage
        return self._endpoint.plane.buffer(length_bytes)

    def end(self, route: Route) -> None:
        """Its transfer has ended: nothing of it is under way."""
        if route.stage is not None:
            self._stages.append(route.stage)

    def close(self) -> None:
        """Gives the stages back; every transfer has ended."""
        for stage in self._stages:
            stage.close()
        self._stages.clear()
