# SPDX-License-Identifier: MIT
"""kill -9 of processes that hold everything a plane gives, at moments chosen by chance.

DMAPLANE_KILLS and DMAPLANE_SEED choose how many, and which.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import attack
import pytest
from driver import Driver

KILLS = int(os.environ.get("DMAPLANE_KILLS", 40 if attack.IS_DEBUG else 300))
UNLOADED_WITHIN_S = 5.0 * attack.SLOWNESS


@pytest.mark.timeout(3000)
def test_kill_returns_everything_and_the_module_can_go(
    program: Callable[[str], Path], driver: Driver
) -> None:
    attack.modprobe("udmabuf", "vgem")
    # Law L4 says a second; ten where every access to memory is checked by KASAN in emulation.
    within_ms = 1000 * attack.SLOWNESS
    said = attack.run(
        program("killed"),
        *("--seed", attack.seed(), "--kills", KILLS, "--within-ms", within_ms),
        timeout_s=2900,
    )
    hits = dict(re.findall(r"(making|holding|copying|draining|destroying) (\d+)", said))
    if KILLS >= 100:
        assert all(int(count) for count in hits.values()), "not every stage was hit"
    assert len(hits) == 5
    began = time.monotonic()
    driver.unload()
    assert time.monotonic() - began < UNLOADED_WITHIN_S
    driver.load()
