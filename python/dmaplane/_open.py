# SPDX-License-Identifier: MIT
"""The one place where a plane is chosen."""

from __future__ import annotations

import os
from typing import Literal

from dmaplane._embedded import EmbeddedPlane
from dmaplane._errors import DmaplaneError, InvalidError, UnsupportedError
from dmaplane._kernel import DEVICE_PATH, KernelPlane
from dmaplane._plane import Plane


def open(plane: Literal["auto", "embedded", "kernel"] = "auto") -> Plane:
    """Opens a plane; `plane.name` and `plane.reason` say which one it is and why.

    "auto" is the kernel plane where it is there, may be opened and speaks our ABI, else the
    embedded one. UnsupportedError says what is missing and how to get it. What was asked
    for by name is never replaced by something else.
    """
    if plane == "embedded":
        return EmbeddedPlane("asked for by name")
    if plane == "kernel":
        return KernelPlane("asked for by name")
    if plane != "auto":
        raise InvalidError("plane", f"{plane!r} is none", fix='"auto", "embedded" or "kernel"')
    if not os.path.exists(DEVICE_PATH):
        return EmbeddedPlane(f"no kernel plane: {DEVICE_PATH} does not exist")
    try:
        return KernelPlane(f"{DEVICE_PATH} is there")
    except UnsupportedError as missing:
        return EmbeddedPlane(f"no kernel plane: it needs {missing.needs}")
    except DmaplaneError as refused:
        return EmbeddedPlane(f"no kernel plane: {refused}")
