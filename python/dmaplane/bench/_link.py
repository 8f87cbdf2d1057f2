# SPDX-License-Identifier: MIT
"""Two processes joined by endpoints, for benches: this side, and the handle of the other.

Endpoints are made with the structs of the contract, so that hundreds of them cost
nothing but what the plane costs; what is measured from Python goes through the public channel.

Who owns what. A FarSide owns the other process. A Link owns its channel and endpoints here and the
door they go through there; it ends before its FarSide does.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from dmaplane import _abi
from dmaplane._errors import DmaplaneError, error_from
from dmaplane._plane import deadline_of
from dmaplane.bench import _loops

if TYPE_CHECKING:
    from types import TracebackType

    import numpy.typing as npt
    from typing_extensions import Self

    from dmaplane._channel import Channel
    from dmaplane._plane import Plane

ADDRESS: Final = b"127.0.0.1:0"
SECRET: Final = b"dmaplane bench"
"""Between two processes of one bench; who listens off loopback has to have one."""
Path = Literal["shm", "tcp", "verbs"]
PATHS: Final[tuple[Path, ...]] = ("shm", "tcp")
"""Those every machine has."""
NUMBERS: Final[dict[Path, int]] = {
    "shm": _abi.PATH_SHM,
    "tcp": _abi.PATH_TCP,
    "verbs": _abi.PATH_VERBS,
}
WINDOW_BYTES: Final = 1 << 20
PING_BYTES: Final = 8
PATIENCE_S: Final = 30.0
_ACCESS: Final = _abi.ACCESS_REMOTE_WRITE | _abi.ACCESS_REMOTE_READ


def destroy(number: int) -> _abi.Destroy:
    """The struct that ends the object of that id."""
    return _abi.Destroy(size=ctypes.sizeof(_abi.Destroy), id=number)


def grant(plane: Plane, buffer_id: int, length_bytes: int) -> bytes:
    """The key a peer may write that much of a buffer with."""
    region = _abi.RegionCreate(buffer_id=buffer_id, access=_ACCESS, length_bytes=length_bytes)
    plane.call("REGION_CREATE", _abi.REGION_CREATE, region)
    return bytes(region.key[: region.key_bytes])


def imported(plane: Plane, endpoint: int, key: bytes) -> int:
    """The id by which rows on that endpoint name the peer's region."""
    region = _abi.RegionImport(endpoint_id=endpoint, key_bytes=len(key))
    region.key[: len(key)] = list(key)
    plane.call("REGION_IMPORT", _abi.REGION_IMPORT, region)
    return int(region.region_id)


def rows_over(
    endpoint: int,
    source: int,
    region: int,
    block_bytes: int,
    source_blocks: npt.NDArray[Any],
    target_blocks: npt.NDArray[Any],
) -> npt.NDArray[np.void]:
    """A WRITE_IMM for each pair of block numbers; immediates and user_data count from 0."""
    count = len(source_blocks)
    rows = np.zeros(count, dtype=_abi.SUBMISSION)
    rows["operation"] = _abi.OP_WRITE_IMM
    rows["endpoint_id"] = endpoint
    rows["source_id"], rows["target_id"] = source, region
    rows["source_offset"] = source_blocks.astype(np.uint64) * np.uint64(block_bytes)
    rows["target_offset"] = target_blocks.astype(np.uint64) * np.uint64(block_bytes)
    rows["length_bytes"] = block_bytes
    rows["user_data"] = rows["immediate"] = np.arange(count, dtype=np.uint32)
    return rows


def message_rows(endpoint: int, buffer: int, length_bytes: int) -> npt.NDArray[np.void]:
    """A SEND of the first bytes of a buffer, and a RECV into the bytes behind them."""
    rows = np.zeros(2, dtype=_abi.SUBMISSION)
    rows["operation"] = (_abi.OP_SEND, _abi.OP_RECV)
    rows["endpoint_id"] = endpoint
    rows["length_bytes"] = length_bytes
    rows["source_id"][0] = rows["target_id"][1] = buffer
    rows["target_offset"][1] = length_bytes
    return rows


def succeeded(done: npt.NDArray[np.void]) -> None:
    """DmaplaneError for the first of these completions that failed."""
    failed = done["result"]
    if failed.any():
        raise error_from(int(failed[failed != 0][0]), "WRITE_IMM")


def memory_bytes() -> int:
    """Memory this process has, its part of what it shares with others included.

    What was freed is given back to the system before, so that it does not hide what comes.
    """
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/self/smaps_rollup names no Pss")


class FarSide:
    """The other process."""

    def __init__(
        self,
        plane: str,
        kind: str,
        length_bytes: int,
        rows_fd: int = -1,
        *,
        module: str = "dmaplane.bench._far",
        begin: bool = True,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=() if rows_fd < 0 else (rows_fd,),
        )
        self.length_bytes = length_bytes
        self.key, self.memory_path = b"", ""
        if not begin:  # it is told otherwise what to have
            return
        try:
            opened = self.ask(
                "open", plane=plane, kind=kind, length_bytes=length_bytes, rows_fd=rows_fd
            )
        except BaseException:
            self.kill()
            raise
        self.key = bytes.fromhex(opened["key"])
        self.memory_path = self.path_of(opened["fd"])
        """Its buffer, for others to map."""

    def path_of(self, fd: int) -> str:
        """A descriptor of the other process, for this one to open."""
        return f"/proc/{self._process.pid}/fd/{fd}"

    def tell(self, do: str, **request: Any) -> None:
        """A request whose answer hear() takes later."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise DmaplaneError("the other process of the bench has ended") from None

    def hear(self) -> dict[str, Any]:
        """The next answer; DmaplaneError with what the other process says went wrong."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise DmaplaneError("the other process of the bench has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise DmaplaneError(f"in the other process: {answer['error']}")
        return answer

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """A request and its answer."""
        self.tell(do, **request)
        return self.hear()

    def kill(self) -> int:
        """SIGKILL; when, by CLOCK_MONOTONIC."""
        now = time.monotonic_ns()
        self._process.kill()
        return now

    def close(self) -> None:
        """Ends it; idempotent."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
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


class Link:
    """Endpoints from a channel here to a door there."""

    def __init__(
        self,
        plane: Plane,
        far: FarSide,
        path: Path,
        channel: Channel | _loops.RawChannel,
        *,
        window: int,
        slots: int = 4096,
        spin_us: int | None = None,
        address: str = ADDRESS.decode(),
    ) -> None:
        self._plane = plane
        self.far = far
        self._secret = b"" if address.encode() == ADDRESS else SECRET
        self.path = path
        self.channel = channel
        self._window = window
        door = far.ask(
            "listen",
            path=NUMBERS[path],
            slots=slots,
            spin_us=spin_us,
            window=window,
            address=address,
            secret=self._secret.decode(),
        )
        self.door: int = door["door"]
        self._address: bytes = door["address"].encode()
        self.endpoints: list[int] = []
        self.regions: list[int] = []

    def connect(self, count: int = 1, channel: Channel | None = None) -> None:
        """@count more endpoints, each with the other side's buffer to write into.

        @channel: theirs, if it is not the link's.
        """
        self.far.tell("accept", door=self.door, count=count)
        for _ in range(count):
            connect = _abi.Connect(
                flags=_abi.REQUIRE_PATH,
                channel_id=(channel or self.channel).id,
                path=NUMBERS[self.path],
                secret_bytes=len(self._secret),
                window_slots=self._window,
                window_bytes=WINDOW_BYTES,
                deadline_ns=deadline_of(PATIENCE_S),
            )
            connect.address[: len(self._address)] = list(self._address)
            connect.secret[: len(self._secret)] = list(self._secret)
            self._plane.call("CONNECT", _abi.CONNECT, connect)
            self.endpoints.append(connect.endpoint_id)
        self.far.hear()
        for endpoint in self.endpoints[-count:]:
            self.regions.append(imported(self._plane, endpoint, self.far.key))

    def forget(self) -> None:
        """Ends the endpoints; the other process is dead, or ends its own."""
        for region in self.regions:
            self._plane.command(_abi.REGION_DESTROY, destroy(region))
        for endpoint in self.endpoints:
            self._plane.command(_abi.ENDPOINT_DESTROY, destroy(endpoint))
        self.endpoints, self.regions = [], []

    def close(self) -> None:
        """Ends the endpoints, then the door; the channel is the caller's."""
        self.forget()
        self.far.ask("leave", door=self.door)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
