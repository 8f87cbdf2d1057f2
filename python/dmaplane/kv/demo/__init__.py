# SPDX-License-Identifier: MIT
"""The demo of KV transfer: prefill and decode as two processes, checked against one.

`dmaplane demo` shows it. The parts, each knowing only those before it: client, children, reference,
traces, outcome, lanes, picture, run.
"""

from __future__ import annotations

from dmaplane.kv.demo._lanes import Bar, Group, Lane, end, groups
from dmaplane.kv.demo._outcome import Done, Outcome
from dmaplane.kv.demo._run import DemoSettings, run

__all__ = ["Bar", "DemoSettings", "Done", "Group", "Lane", "Outcome", "end", "groups", "run"]
