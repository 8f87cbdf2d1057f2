# SPDX-License-Identifier: MIT
"""KV caches: what they look like, who has which blocks, and how they cross to another machine.

    from dmaplane import kv

The parts, each knowing only those before it: layout, plan, pool, transfer, engine, serve.
docs/kv.md is the guide, docs/design/kv.md the reasons.
"""

from __future__ import annotations

from dmaplane.kv._ask import Ask
from dmaplane.kv._blocks import Account
from dmaplane.kv._incoming import Incoming
from dmaplane.kv._layout import LAYOUT_BYTES, Dtype, Kind, Layout, Order
from dmaplane.kv._leaks import Books
from dmaplane.kv._lease import Lease, LeaseRow, LeaseState
from dmaplane.kv._outgoing import Outgoing
from dmaplane.kv._plan import COPY, Plan, compile_plan, sources_of
from dmaplane.kv._pool import Pool
from dmaplane.kv._receiver import Receiver
from dmaplane.kv._sender import Sender
from dmaplane.kv._transfer import ReceiverStatistics, SenderStatistics, Transferred

__all__ = [
    "COPY",
    "LAYOUT_BYTES",
    "Account",
    "Ask",
    "Books",
    "Dtype",
    "Incoming",
    "Kind",
    "Layout",
    "Lease",
    "LeaseRow",
    "LeaseState",
    "Order",
    "Outgoing",
    "Plan",
    "Pool",
    "Receiver",
    "ReceiverStatistics",
    "Sender",
    "SenderStatistics",
    "Transferred",
    "compile_plan",
    "sources_of",
]
