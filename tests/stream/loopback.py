# SPDX-License-Identifier: MIT
"""A device with a network card whose wire is tcp on loopback: all of the tier but the card."""

from __future__ import annotations

from dmaplane._embedded import EmbeddedPlane
from dmaplane.stream import Device
from dmaplane.stream.nic import Card, NetworkDevice

LOOPBACK = Card(name="lo0", node=None, place=(), address="127.0.0.1", lacks="")


def with_loopback(inner: Device) -> NetworkDevice:
    """@inner with the tier "nic" over loopback."""
    return NetworkDevice(inner, LOOPBACK, plane=EmbeddedPlane("of a test"), fabric="tcp")
