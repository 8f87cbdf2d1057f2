# SPDX-License-Identifier: MIT
"""The shipped conformance suite, on the planes this package serves."""

from __future__ import annotations

import pytest

import dmaplane
from dmaplane import testing


def _embedded() -> dmaplane.Plane:
    return dmaplane.open(plane="embedded")


@pytest.mark.parametrize("case", testing.cases(), ids=str)
def test_embedded_plane_conforms(case: testing.Case) -> None:
    case.run(_embedded)
