# SPDX-License-Identifier: MIT
"""Peers of `bench endpoint` that are programs of others: libfabric, NIXL, Mooncake.

Each runs as two processes of its own, over the bench's memory, which it is given by fd, and is
told on stdin to write the first COUNT of the rows both know with at most WINDOW in flight. It
answers in nanoseconds. None of them is needed: where one is not installed, its rows and
claims are left out and say how to get it.

Who owns what. A Peer owns its process; the fds are the bench's.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from dmaplane import _library
from dmaplane._errors import DmaplaneError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

LIBFABRIC_NAME: Final = "dmaplane-bench-libfabric"


class Kind(NamedTuple):
    """One peer: what rows call it, how it is run, how it is had."""

    name: str
    command: tuple[str, ...]
    modules: tuple[str, ...]
    """Any of these; none for a program."""
    install: str
    sizes: tuple[str, ...] = ("4KiB", "64KiB", "1MiB")
    """What it is measured with: some take minutes for small blocks."""


LIBFABRIC_TCP: Final = Kind(
    "libfabric tcp",
    (LIBFABRIC_NAME, "tcp;ofi_rxm"),
    (),
    "apt install libfabric-dev, then build dmaplane again",
)
LIBFABRIC_SHM: Final = LIBFABRIC_TCP._replace(name="libfabric shm", command=(LIBFABRIC_NAME, "shm"))
NIXL: Final = Kind(
    "NIXL", ("dmaplane.bench._peer_nixl",), ("nixl_cu13", "nixl_cu12"), "pip install nixl"
)
MOONCAKE: Final = Kind(
    "Mooncake tcp",
    ("dmaplane.bench._peer_mooncake",),
    ("mooncake",),
    "pip install mooncake-transfer-engine-non-cuda",
    ("1MiB",),
)


class MissingPeerError(DmaplaneError):
    """It is not installed, or does not run here; the text says what to do."""


class Shared(NamedTuple):
    """What the bench and a peer have in common."""

    source_fd: int
    target_fd: int
    rows_fd: int
    length_bytes: int
    rows: int


def found(kind: Kind) -> str:
    """The module that is @kind. MissingPeerError says how to get it."""
    for module in kind.modules:
        if importlib.util.find_spec(module) is not None:
            return module
    raise MissingPeerError(f"{kind.name} is not installed: {kind.install}")


def _command(kind: Kind) -> tuple[str, ...]:
    if kind.modules:
        found(kind)
        return (sys.executable, "-m", *kind.command)
    path = _library.library_path().with_name(kind.command[0])
    if not path.exists():
        raise MissingPeerError(f"{kind.name} is not installed: {kind.install}")
    return (str(path), *kind.command[1:])


class Peer:
    """A peer that runs. MissingPeerError if it is not there, or does not start."""

    def __init__(self, kind: Kind, shared: Shared) -> None:
        self.name = kind.name
        self.sizes = kind.sizes
        command = _command(kind)
        self._said: IO[str] = tempfile.TemporaryFile(  # noqa: SIM115 - closed by close()
            "w+", encoding="utf-8"
        )
        self._process = subprocess.Popen(
            [*command, *map(str, shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            pass_fds=shared[:3],
        )
        try:
            self.version = self._hear()
        except BaseException:
            self.close()
            raise

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            said = self._said.read().strip().splitlines() or ["it ended without a word"]
            raise MissingPeerError(f"{self.name} does not run here: {said[-1]}")
        return line.strip()

    def _ask(self, request: str) -> int:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # _hear says why
        return int(self._hear())

    def write(self, count: int, window: int) -> int:
        """Nanoseconds to write the first @count rows, @window in flight."""
        return self._ask(f"write {count} {window}")

    def ping(self, count: int) -> int:
        """Nanoseconds, the median of @count round trips."""
        return self._ask(f"ping {count}")

    def close(self) -> None:
        """Ends it; idempotent."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:
                pass
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
