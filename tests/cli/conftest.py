# SPDX-License-Identifier: MIT
"""The command line as a user runs it: a process with a fixed width and nothing on stdin."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def widest(self) -> str:
        return max((*self.out.splitlines(), *self.err.splitlines()), key=len, default="")


class Commands:
    """Runs `dmaplane ...` in a process of its own."""

    def __call__(self, *words: str, timeout: float = 120, **changes: str) -> Answer:
        environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb", **changes}
        done = subprocess.run(
            [sys.executable, "-m", "dmaplane.cli", *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def dmaplane_command() -> Commands:
    return Commands()
