# SPDX-License-Identifier: MIT
"""Tests of KV caches. What several of them need lies beside them, as modules."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
