# SPDX-License-Identifier: MIT
"""Two machines and a cable between them. Both end with the block that made them.

    with Pair(kernel, folder, python="...", patience_s=60) as pair:
        pair.ready()
        pair.nodes[0].shell("uname -a")
        pair.pull()

Each has a processor, a card "wire" with 10.77.0.1 or 10.77.0.2, and FOLDER/1 or FOLDER/2
at /mnt. patience_s: what takes less than a second on an idle machine may take this long.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import machine
from kernels import Kernel
from node import Node

MEMORY_MIB = 1024


class Pair:
    """Both machines; a context manager."""

    def __init__(
        self, kernel: Kernel, folder: Path, *, python: str, patience_s: float, **settings: str
    ) -> None:
        """@settings: environment of the programs in the machines."""
        box = machine.Machine(kernel, memory_mib=MEMORY_MIB, cpus=1, nodes=1)
        every = {"PYTHONPATH": "/mnt/site", "PYTHONDONTWRITEBYTECODE": "1", **settings}
        exports = [f"export {name}={shlex.quote(value)}" for name, value in every.items()]
        command = "\n".join([*exports, f"exec {shlex.quote(python)} tools/vm/agent.py"])
        self.nodes = tuple(Node(box, folder / str(n), n, patience_s) for n in (1, 2))
        self._load: list[dict[str, Any]] = []
        for node in self.nodes:
            node.folder.mkdir()
            box.prepare(command, node.folder)

    def load(self, module: str, *paths: str) -> None:
        """A module that fork() takes functions of; each machine imports it when it boots."""
        self._load.append({"module": module, "paths": paths})

    def ready(self) -> None:
        """Starts what does not run, both at once, and waits for it; the cable is in."""
        started = [node for node in self.nodes if not node.running]
        try:
            for node in started:
                node.kill()
                node.boot()
            for node in started:
                node.ready()
                for order in self._load:
                    node.post("load", **order)
            for node in started:
                for _ in self._load:
                    node.answer()
            self.plug()
        except BaseException:
            self.kill()
            raise

    def pull(self) -> None:
        """The cable is out, at both ends."""
        for node in self.nodes:
            if node.running:
                node.plug(False)

    def plug(self) -> None:
        """And in again."""
        for node in self.nodes:
            if node.running:
                node.plug(True)

    def kill(self) -> None:
        """Pulls the plug of both."""
        for node in self.nodes:
            node.kill()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for node in self.nodes:
            for name in ("tree", "site"):
                shutil.rmtree(node.folder / name, ignore_errors=True)
            if os.path.exists(node.folder / "initrd"):
                os.unlink(node.folder / "initrd")
