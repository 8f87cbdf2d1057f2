# SPDX-License-Identifier: MIT
"""The tier "nic": copies by the engine of a network card, and which card that is.

    with nic.with_network(stream.open_device("sim"), nic="auto") as device: ...

_card.py knows the cards, _way.py the connection through one and back, _window.py the memory it
may reach, _network.py the device that has it all.
"""

from __future__ import annotations

from dmaplane.stream.nic._card import Card, cards, choose, nearness
from dmaplane.stream.nic._network import NetworkDevice, with_network

__all__ = ["Card", "NetworkDevice", "cards", "choose", "nearness", "with_network"]
