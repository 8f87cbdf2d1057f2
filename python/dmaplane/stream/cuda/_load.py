# SPDX-License-Identifier: MIT
"""Whether a device is busy, as NVML has it.

NVML tells the share of the last moments in which some kernel ran, whosever it was. Ours are
among them, so a look is only worth something when none of ours ran lately: until then the
last answer holds. A look is taken at most every LOOK_SECONDS.

Not locked: two threads that look at once both write what is true.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any, Final

LIBRARY: Final = "libnvidia-ml.so.1"
LOOK_SECONDS: Final = 0.25
OURS_SECONDS: Final = 1.5
"""NVML looks back at most this long."""
BUSY_PERCENT: Final = 50


class Utilization(ctypes.Structure):
    """nvmlUtilization_t: percent of the time."""

    _fields_ = (("processors", ctypes.c_uint), ("memory", ctypes.c_uint))


class Load:
    """What NVML says of one device; `reason` says why it says nothing."""

    __slots__ = ("_busy", "_handle", "_looked", "_ours", "_rates", "reason")

    def __init__(self, bus_id: str) -> None:
        self._busy = False
        self._looked = self._ours = float("-inf")
        self._rates: Any = None
        self._handle = ctypes.c_void_p()
        self.reason = ""
        try:
            library = ctypes.CDLL(LIBRARY)
            code = library.nvmlInit_v2()
            find = library.nvmlDeviceGetHandleByPciBusId_v2
            find.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
            if not code:
                code = find(bus_id.encode(), ctypes.addressof(self._handle))
        except (OSError, AttributeError) as error:
            self.reason = f"NVML: {error}"
            return
        if code:
            self.reason = f"NVML answers {code} for {bus_id}"
            return
        self._rates = library.nvmlDeviceGetUtilizationRates
        self._rates.argtypes = (ctypes.c_void_p, ctypes.c_void_p)

    def note_work(self) -> None:
        """A kernel of ours was started."""
        self._ours = time.monotonic()

    def busy(self) -> bool:
        """What it said when it was last worth asking."""
        now = time.monotonic()
        if (
            self._rates is None
            or now - self._looked < LOOK_SECONDS
            or now - self._ours < OURS_SECONDS
        ):
            return self._busy
        self._looked = now
        seen = Utilization()
        code = self._rates(self._handle, ctypes.addressof(seen))
        if code:
            self.reason = f"NVML answers {code}"
        else:
            self._busy = seen.processors >= BUSY_PERCENT
        return self._busy
