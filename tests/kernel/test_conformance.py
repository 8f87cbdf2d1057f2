# SPDX-License-Identifier: MIT
"""The shipped conformance suite, on the kernel plane."""

from __future__ import annotations

import pathlib
import sys

import pytest

import dmaplane
from dmaplane import testing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

from laws_docs import listed_as_run


def _kernel() -> dmaplane.Plane:
    return dmaplane.open(plane="kernel")


@pytest.mark.parametrize("case", testing.cases(), ids=str)
def test_kernel_plane_conforms(case: testing.Case) -> None:
    try:
        case.run(_kernel)
    except testing.MissingCapability:
        assert not listed_as_run(case, "kernel"), "docs/laws.md says that this one runs"
        raise
