# SPDX-License-Identifier: MIT
"""The simulated device: the same interface as a real one, over host memory, by a cost model."""

from __future__ import annotations

from dmaplane.stream.sim._cost import Cost, CostModel, TierCost
from dmaplane.stream.sim._device import SimDevice
from dmaplane.stream.sim._faults import Faults
from dmaplane.stream.sim._memory import SimMemory

__all__ = ["Cost", "CostModel", "Faults", "SimDevice", "SimMemory", "TierCost"]
