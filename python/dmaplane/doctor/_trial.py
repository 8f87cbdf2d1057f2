# SPDX-License-Identifier: MIT
"""Opens a plane and moves bytes through it, through the public API only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from dmaplane.doctor._check import size
from dmaplane.doctor._machine import Trial

if TYPE_CHECKING:
    from typing import Literal

TRIAL_BYTES: Final = 1 << 20


def try_plane(name: Literal["embedded", "kernel"]) -> Trial:
    """What came of one copy with checksum. Any failure is a finding, never an exception."""
    import dmaplane

    try:
        with dmaplane.open(plane=name) as plane:
            source, target = plane.buffer(TRIAL_BYTES), plane.buffer(TRIAL_BYTES)
            with source, target, plane.channel(slots=1) as channel:
                source.memory()[:] = bytes(range(256)) * (TRIAL_BYTES // 256)
                start = time.monotonic()
                done = channel.copy(target, source, checksum=True).wait(timeout=10.0)
                elapsed = time.monotonic() - start
                expected = dmaplane.crc32c(target.memory())
            if done.checksum != expected:
                return Trial(False, f"a copy of {size(TRIAL_BYTES)} arrived with other bytes")
            return Trial(
                True,
                f"{plane.version}: opened, {size(TRIAL_BYTES)} copied and checked "
                f"in {elapsed * 1e6:.0f} us",
            )
    except dmaplane.UnsupportedError as error:
        return Trial(False, str(error), other_abi=error.feature.startswith("a plane of ABI"))
    except Exception as error:  # whatever is wrong with a plane is what doctor is for
        return Trial(False, f"{type(error).__name__}: {error}")
