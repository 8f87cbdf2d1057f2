# SPDX-License-Identifier: MIT
"""The shipped conformance suite, on the kernel plane."""

from __future__ import annotations

import pytest

import dmaplane
from dmaplane import testing


def _kernel() -> dmaplane.Plane:
    return dmaplane.open(plane="kernel")


@pytest.mark.parametrize("case", testing.cases(), ids=str)
def test_kernel_plane_conforms(case: testing.Case) -> None:
    case.run(_kernel)
