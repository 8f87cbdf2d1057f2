# SPDX-License-Identifier: MIT
"""The one place where a plane is chosen."""

from __future__ import annotations

import os
from typing import Final, Literal

from dmaplane._embedded import EmbeddedPlane
from dmaplane._errors import InvalidError, UnsupportedError
from dmaplane._plane import Plane

DEVICE_PATH: Final = "/dev/dmaplane"


def open(plane: Literal["auto", "embedded", "kernel"] = "auto") -> Plane:
    """Opens a plane; `plane.name` and `plane.reason` say which one it is and why.

    UnsupportedError says what is missing and how to get it. What was asked for by name
    is never replaced by something else.
    """
    if plane == "embedded":
        return EmbeddedPlane("asked for by name")
    if plane == "kernel":
        if os.path.exists(DEVICE_PATH):
            needs = "a newer dmaplane package: this one serves the embedded plane only"
        else:
            needs = (
                f"{DEVICE_PATH}, and there is none: load the module (`modprobe dmaplane`, as root) "
                'or take dmaplane.open(plane="embedded"), which needs nothing'
            )
        raise UnsupportedError("the kernel plane", needs)
    if plane == "auto":
        if os.path.exists(DEVICE_PATH):
            return EmbeddedPlane(f"this package does not serve {DEVICE_PATH} yet")
        return EmbeddedPlane(f"no kernel plane: {DEVICE_PATH} does not exist")
    raise InvalidError("plane", f"{plane!r} is none", fix='"auto", "embedded" or "kernel"')
