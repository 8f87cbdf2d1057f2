# SPDX-License-Identifier: MIT
"""perftest's ib_write_bw and ib_write_lat, the peers of `bench rdma`: two processes a run.

Who owns what. A run owns its two processes, and both have ended when it returns.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Final

from dmaplane._errors import DmaplaneError

if TYPE_CHECKING:
    from dmaplane.bench._device import Device

PORT: Final = 18515
PORTS: Final = 1000
PATIENCE_S: Final = 120.0
TRIES: Final = 3
"""It measures the CPU's clock first, and on an emulated CPU that may come to nothing."""
_LISTEN: Final = "0A"
_MIB: Final = 1 << 20


class MissingPerftestError(DmaplaneError):
    """It is not installed."""


class UnreadableError(DmaplaneError):
    """It printed no line of figures, or none that are numbers."""


def _listens(port: int) -> bool:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in pathlib.Path(table).read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTEN and int(words[1].rsplit(":", 1)[1], 16) == port:
                return True
    return False


def figures(output: str) -> list[float]:
    """The numbers of the one line of figures that perftest prints."""
    lines = [line for line in output.splitlines() if re.fullmatch(r"[\s\d.]+", line)]
    found = [[float(word) for word in line.split()] for line in lines if line.strip()]
    if len(found) != 1 or len(found[0]) < 5:
        raise UnreadableError(f"perftest said nothing that can be read: {output[-400:]!r}")
    return found[0]


class Perftest:
    """Runs it on one device, each time on the next TCP port."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._port = PORT
        for name in ("ib_write_bw", "ib_write_lat"):
            if shutil.which(name) is None:
                raise MissingPerftestError(f"{name} is not installed: apt install perftest")

    def _run(self, name: str, *words: str) -> list[float]:
        for _ in range(TRIES - 1):
            with contextlib.suppress(UnreadableError):
                return figures(self._output(name, *words))
        return figures(self._output(name, *words))

    def _output(self, name: str, *words: str) -> str:
        device = self._device
        self._port = PORT + (self._port + 1 - PORT) % PORTS
        while _listens(self._port):
            self._port += 1
        command = [
            *(name, "-F", "-d", device.name, "-i", str(device.port)),
            *("-x", str(device.gid_index), "-p", str(self._port), *words),
        ]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as server:
            try:
                self._await(server)
                client = subprocess.run(
                    [*command, str(device.ip)],
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as late:
                raise DmaplaneError(f"{name} did not end in {PATIENCE_S:g} s") from late
            finally:
                server.kill()
        if client.returncode:
            said = (client.stderr or client.stdout).strip()
            raise DmaplaneError(f"{name} ended with {client.returncode}: {said[-400:]}")
        return client.stdout

    def _await(self, server: subprocess.Popen[str]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not _listens(self._port):
            if server.poll() is not None or time.monotonic() > until:
                assert server.stderr is not None
                raise DmaplaneError(f"perftest does not run here: {server.stderr.read()[-400:]}")
            time.sleep(0.01)

    def write_bytes_per_second(self, size: int, count: int, depth: int) -> float:
        """The average of ib_write_bw: @count writes of @size, @depth in flight."""
        depth = min(depth, count)
        found = self._run("ib_write_bw", "-N", *f"-s {size} -n {count} -t {depth}".split())
        return found[3] * _MIB

    def write_latency_us(self, size: int, count: int) -> float:
        """The typical time of ib_write_lat one way, half of there and back."""
        return self._run("ib_write_lat", *f"-s {size} -n {count}".split())[4]
