# SPDX-License-Identifier: MIT
"""Serving with caches that cross: a prefill server, a decode server, HTTP in front of it.

    dmaplane kv prefill --listen 127.0.0.1:7471
    dmaplane kv decode --prefill 127.0.0.1:7471 --http 127.0.0.1:8000

The extra `serve` (h11) has to be installed. The parts, each knowing only those before it: http,
completion, order, blocks, prefill, link, decode, routes, site.
"""

from __future__ import annotations

from dmaplane.kv.serve._decode import Decoder, DecodeSettings, Figures
from dmaplane.kv.serve._http import HttpServer, Limits
from dmaplane.kv.serve._link import Link, LinkSettings
from dmaplane.kv.serve._prefill import PrefillServer, PrefillSettings
from dmaplane.kv.serve._routes import PrefillRoutes, Routes
from dmaplane.kv.serve._site import Door, Site, SiteSettings, opened, serve_decode, serve_prefill
from dmaplane.kv.serve._text import TextStream, tokens_of

__all__ = [
    "DecodeSettings",
    "Decoder",
    "Door",
    "Figures",
    "HttpServer",
    "Limits",
    "Link",
    "LinkSettings",
    "PrefillRoutes",
    "PrefillServer",
    "PrefillSettings",
    "Routes",
    "Site",
    "SiteSettings",
    "TextStream",
    "opened",
    "serve_decode",
    "serve_prefill",
    "tokens_of",
]
