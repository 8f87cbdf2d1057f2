# SPDX-License-Identifier: MIT
"""The same prompts in one process, with the same engine: what the split run has to give.

Run as a process of its own, `python -m dmaplane.kv.demo._reference`, with as many threads as a
server of the demo has: a prompt at a time comes in as a line of JSON, its tokens go out as one.

Invariants: nothing crosses anything here; prefill and decode work on one lease of one pool. The
control spoils one block of the cache and must give other tokens: if it did not, equal tokens would
prove nothing.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np

from dmaplane.kv.engine import Cache, greedy
from dmaplane.kv.serve import SiteSettings, opened

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane.kv.serve import Site


def tokens_of(site: Site, prompt: npt.NDArray[np.int64], count: int, *, spoiled: bool) -> list[int]:
    """@count greedy tokens after @prompt; @spoiled: with one block of the cache zeroed."""
    layout, pool = site.pool.layout, site.pool
    with pool.lease(layout.blocks_for(len(prompt) - 1 + count), holder="reference") as lease:
        cache = Cache(pool, lease)
        lease.fill()
        if len(prompt) > 1:
            site.engine.prefill(prompt[:-1], cache)
        if spoiled:
            for layer in range(layout.layers):
                pool.layer(layer)[lease.blocks[0]] = 0
        lease.publish()
        last = len(prompt) - 1
        return list(greedy(site.engine, cache, token=int(prompt[-1]), position=last, count=count))


def main() -> None:
    """The first line has the settings; each one after it is a prompt, until there are no more."""
    settings = json.loads(sys.stdin.readline())
    pairs = tuple((name, value) for name, value in settings.pop("engine_settings"))
    with opened(SiteSettings(**settings, engine_settings=pairs)) as site:
        for line in sys.stdin:
            asked = json.loads(line)
            prompt = np.array(asked["prompt"], dtype=np.int64)
            tokens = tokens_of(site, prompt, asked["count"], spoiled=asked["spoiled"])
            sys.stdout.write(json.dumps(tokens) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
