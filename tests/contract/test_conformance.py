# SPDX-License-Identifier: MIT
"""The shipped conformance suite, on the embedded plane. The kernel's turn is in tests/kernel."""

from __future__ import annotations

import pathlib
import sys

import pytest

import dmaplane
from dmaplane import testing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

from laws_docs import listed_as_run


def _embedded() -> dmaplane.Plane:
    return dmaplane.open(plane="embedded")


@pytest.mark.parametrize("case", testing.cases(), ids=str)
def test_embedded_plane_conforms(case: testing.Case) -> None:
    try:
        case.run(_embedded)
    except testing.MissingCapability:
        assert not listed_as_run(case, "embedded"), "docs/laws.md says that this one runs"
        raise
