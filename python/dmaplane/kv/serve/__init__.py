# SPDX-License-Identifier: MIT
"""Serving with caches that cross: a prefill server, a decode server, HTTP in front of it.

    dmaplane kv prefill --listen 127.0.0.1:7471
    dmaplane kv decode --prefill 127.0.0.1:7471 --http 127.0.0.1:8000

The extra `serve` (h11) has to be installed. The parts, each knowing only those before it: http,
completion, order, blocks, prefill, link, decode, routes, site.
"""

from __future__ import annotations
