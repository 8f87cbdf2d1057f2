# SPDX-License-Identifier: MIT
"""The servers of the demo as processes: started, listened to until they are ready, and ended.

Invariants: when the `with` block is over the process is gone and has been waited for, whatever
happened; should this process be killed first, its end of the child's standard input closes and the
child ends by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

from dmaplane._errors import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmaplane.kv.serve import SiteSettings

START_S: Final = 120.0
STOP_S: Final = 5.0
_LINE_BYTES_MAX: Final = 1 << 16
_THREADS: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Two processes that compute with two threads each on two cores are slower than with one."""


class Child:
    """A server; `told` is what it said of itself when it was ready."""

    def __init__(self, process: subprocess.Popen[bytes], told: dict[str, Any]) -> None:
        self.process = process
        self.told = told


@contextlib.contextmanager
def child(*words: str, secret: str | None = None) -> Iterator[Child]:
    """`dmaplane kv @words`, ready. UnreachableError has its own words if it never is."""
    environment = {**os.environ, **_THREADS}
    if secret is not None:
        environment["DMAPLANE_SECRET"] = secret
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "dmaplane.cli", "kv", *words, "--json", "--until-stdin-ends"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        )
        try:
            line = _line(process)
            if not line.startswith(b"{") or b'"error"' in line:
                process.wait(STOP_S)
                errors.seek(0)
                said = " ".join(errors.read(4096).decode(errors="replace").split())
                raise UnreachableError(
                    f"dmaplane kv {words[0]} did not start: {said.removeprefix('dmaplane: ')}"
                )
            yield Child(process, json.loads(line))
        finally:
            _end(process)


class Single:
    """The single process: tokens for prompts, one prompt at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def tokens(self, prompt: list[int], count: int, *, spoiled: bool) -> list[int]:
        """@count tokens after @prompt; @spoiled: of a cache with one block zeroed."""
        assert self._process.stdin is not None
        asked = {"prompt": prompt, "count": count, "spoiled": spoiled}
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        line = _line(self._process)
        if not line.endswith(b"\n"):
            raise UnreachableError("the single process ended without an answer")
        tokens: list[int] = json.loads(line)
        return tokens


@contextlib.contextmanager
def single(site: SiteSettings) -> Iterator[Single]:
    """The single process, from its start to its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dmaplane.kv.demo._reference"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **_THREADS},
    )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(dataclasses.asdict(site)).encode() + b"\n")
        yield Single(process)
    finally:
        _end(process)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    """The first line it prints; what there is if it ends before."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    line = b""
    until = time.monotonic() + START_S
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES_MAX:
        left = until - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            break
        byte = os.read(fd, _LINE_BYTES_MAX)
        if not byte:
            break
        line += byte
    return line


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass  # it has ended already, with something of ours unread
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        process.stdout.close()
