# SPDX-License-Identifier: MIT
"""The host's end of a program of puppets.py: it asks, and hears what came of it."""

from __future__ import annotations

import json
from typing import Any

from node import Node, Program


class Puppet:
    """A process with a plane in a machine, for connections over one fabric, or any; see live()."""

    def __init__(self, node: Node, fabric: str | None = None, plane: str = "embedded") -> None:
        self.node = node
        self.fabric = fabric
        self.plane = plane
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        assert self._program, "it was not born yet"
        return self._program

    def live(self, what: str, **settings: Any) -> Any:
        """Starts a program of puppets.py; what it says first."""
        self._program = self.node.fork("puppets", "live", program=what, settings=settings)
        return self.hear()

    def say(self, **order: Any) -> None:
        """Tells it to do something; hear() waits until that is done."""
        self.program.tell(json.dumps(order))

    def hear(self) -> Any:
        """The next thing it says; what it raised becomes an AssertionError here."""
        message = json.loads(self.program.line(self.node.patience_s))
        failed = isinstance(message, dict) and "failed" in message
        assert not failed, f"on machine {self.node.address.number}: {message['failed']}"
        return message

    def do(self, what: str, **arguments: Any) -> Any:
        """Has it do something, and waits for the answer."""
        self.say(do=what, **arguments)
        return self.hear()

    def kill(self) -> None:
        """kill -9 of the process; its machine goes on."""
        self.program.kill(self.node.patience_s)
