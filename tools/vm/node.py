# SPDX-License-Identifier: MIT
"""One of two machines on a link, as the host sees it: it is started, told, and killed.

QEMU is our child; its two sockets to us (for agent.py in the guest, and for its own
monitor) are pairs made before it, so there is no file to wait for, and when it ends,
however it does, both say so at once.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import agent
import machine

MTU = 4200
"""Room for RDMA's largest packet, 4096 bytes of data, and its headers."""

LOG_TAIL = 20


class GoneError(Exception):
    """The machine has ended while something was expected of it."""


class SilentError(AssertionError):
    """What was waited for did not come in time."""


class Wire:
    """Lines of JSON through a socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._rest = b""

    def say(self, message: dict[str, Any]) -> None:
        try:
            self._end.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise GoneError(str(error)) from error

    def hear(self, limit: float) -> dict[str, Any]:
        """The next line, by @limit on the monotonic clock."""
        while b"\n" not in self._rest:
            left = limit - time.monotonic()
            if left <= 0 or not select.select([self._end], [], [], left)[0]:
                raise SilentError("nothing was said in time")
            try:
                data = self._end.recv(1 << 16)
            except ConnectionError:
                data = b""
            if not data:
                raise GoneError("the line is dead")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        self._end.close()


class Program:
    """A program in a machine."""

    def __init__(self, node: Node, pid: int) -> None:
        self.node, self.pid = node, pid
        self.status: int | None = None
        self.lines: collections.deque[str] = collections.deque()

    def line(self, timeout_s: float) -> str:
        """Its next line; SilentError if it ends without one, or none comes in time."""
        limit = time.monotonic() + timeout_s
        while not self.lines:
            if self.status is not None:
                raise SilentError(f"program {self.pid} has ended with {self.status}")
            self.node.pump(limit)
        return self.lines.popleft()

    def wait(self, timeout_s: float) -> int:
        """Its exit status, or minus the signal that ended it."""
        limit = time.monotonic() + timeout_s
        while self.status is None:
            self.node.pump(limit)
        return self.status

    def tell(self, line: str) -> None:
        """A line for its standard input."""
        self.node.order("tell", pid=self.pid, line=line)

    def signal(self, number: int) -> None:
        self.node.order("signal", pid=self.pid, number=number)

    def kill(self, timeout_s: float) -> None:
        """kill -9; it is gone when this returns."""
        self.signal(signal.SIGKILL)
        self.wait(timeout_s)


@dataclasses.dataclass(frozen=True)
class Address:
    """Which of the two it is: its number, 1 or 2, and the other's."""

    number: int

    @property
    def ip(self) -> str:
        return f"10.77.0.{self.number}"

    @property
    def mac(self) -> str:
        return f"52:54:00:77:00:{self.number:02x}"

    @property
    def devices(self) -> tuple[str, ...]:
        """The link: datagrams between two sockets in the pair's folder, in any order of start."""
        ends = f"local.type=unix,local.path=../link{self.number}"
        ends += f",remote.type=unix,remote.path=../link{3 - self.number}"
        card = f"virtio-net-pci,id=card,netdev=link,mac={self.mac},host_mtu=9000"
        return ("-netdev", f"dgram,id=link,{ends}", "-device", card)


class Node:
    """One of the two machines: off at first, on after boot() and ready(), off after kill()."""

    def __init__(self, box: machine.Machine, folder: Path, number: int, patience_s: float) -> None:
        self.address = Address(number)
        self.folder = folder
        self.patience_s = patience_s
        self._box = box
        self._process: subprocess.Popen[bytes] | None = None
        self._boots = 0
        self._programs: dict[int, Program] = {}
        self._answers: collections.deque[dict[str, Any]] = collections.deque()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def boot(self) -> None:
        """Starts it; ready() waits for it."""
        self._put_log_aside()
        self._programs, self._answers = {}, collections.deque()
        (near, far), (monitor, theirs) = socket.socketpair(), socket.socketpair()
        fds = (far.fileno(), theirs.fileno())
        devices = (
            *("-chardev", f"socket,id=control,fd={fds[0]}", "-device", "virtio-serial-pci"),
            *("-device", f"virtserialport,chardev=control,name={agent.PORT}"),
            *("-chardev", f"socket,id=monitor,fd={fds[1]}", "-mon", "monitor,mode=control"),
            *self.address.devices,
        )
        box = dataclasses.replace(self._box, devices=(*self._box.devices, *devices))
        self._process = box.start(self.folder, fds)
        far.close()
        theirs.close()
        self._control, self._monitor = Wire(near), Wire(monitor)

    def _put_log_aside(self) -> None:
        log = self.folder / "serial.log"
        if log.exists():
            self._boots += 1
            log.rename(self.folder / f"serial.{self._boots}.log")

    def ready(self) -> None:
        """Waits until it can be told something, and gives its network card an address."""
        limit = time.monotonic() + 4 * self.patience_s
        while not self._answers:
            self.pump(limit)
        self._answers.clear()
        self._monitor.hear(limit)
        self._ask_qemu("qmp_capabilities")
        self.shell(
            "modprobe -q virtio_net; set -e\n"
            f"card=$(grep -l {self.address.mac} /sys/class/net/*/address | cut -d / -f 5)\n"
            f'ip link set "$card" name wire mtu {MTU}\n'
            f"ip address add {self.address.ip}/24 dev wire\n"
            "ip link set wire up"
        )

    def pump(self, limit: float) -> None:
        """Takes one message of the machine to where it belongs."""
        try:
            message = self._control.hear(limit)
        except GoneError as error:
            raise GoneError(f"machine {self.address.number} has ended: {self._last()}") from error
        if "pid" not in message:
            self._answers.append(message)
            return
        program = self._programs.setdefault(message["pid"], Program(self, message["pid"]))
        if "line" in message:
            program.lines.append(message["line"])
        else:
            program.status = message["status"]

    def _last(self) -> str:
        """What a machine that has ended said last."""
        lines = [
            line
            for name in ("qemu.log", "output", "serial.log")
            if (self.folder / name).exists()
            for line in (self.folder / name).read_text(errors="replace").splitlines()[-LOG_TAIL:]
        ]
        return "\n".join(lines)

    def post(self, what: str, **fields: Any) -> None:
        """Gives an order whose answer is fetched later, in order, by answer()."""
        self._control.say({"do": what, **fields})

    def answer(self) -> Any:
        """The answer to the oldest order that has none."""
        limit = time.monotonic() + self.patience_s
        while not self._answers:
            self.pump(limit)
        message = self._answers.popleft()
        assert "failed" not in message, message["failed"]
        return message["answer"]

    def order(self, what: str, **fields: Any) -> Any:
        """Has agent.py do something, and waits for its answer."""
        self.post(what, **fields)
        return self.answer()

    def _program(self, pid: int) -> Program:
        # It may have said something before it was known here.
        return self._programs.setdefault(pid, Program(self, pid))

    def start(self, *words: str) -> Program:
        """Starts a program."""
        return self._program(self.order("start", words=words))

    def fork(self, module: str, function: str, **settings: Any) -> Program:
        """Starts a function of a module that was loaded."""
        return self._program(
            self.order("fork", module=module, function=function, settings=settings)
        )

    def run(self, *words: str, timeout_s: float = 0) -> tuple[int, str]:
        """Runs a program to its end: exit status, and all it said."""
        program = self.start(*words)
        try:
            status = program.wait(timeout_s or self.patience_s)
        except SilentError as error:
            raise SilentError(f"{words} does not end; it said: {list(program.lines)}") from error
        return status, "\n".join(program.lines)

    def shell(self, script: str, timeout_s: float = 0) -> str:
        """Runs a script that has to succeed."""
        status, said = self.run("sh", "-c", script, timeout_s=timeout_s)
        assert status == 0, f"on machine {self.address.number}: {script}: {status}: {said}"
        return said

    def end_programs(self) -> None:
        """What still runs is killed."""
        for program in [*self._programs.values()]:
            if program.status is None:
                program.kill(self.patience_s)
        self._programs = {}

    def complaints(self) -> list[str]:
        """What its kernel should not have said since the last call."""
        found: list[str] = self.order("log")
        return found

    def all_complaints(self) -> tuple[str, ...]:
        """The same of all its lives, from the logs."""
        text = "\n".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob("serial*.log"))
        )
        return machine.splats(self.folder, text)

    def _ask_qemu(self, command: str, **arguments: Any) -> None:
        self._monitor.say({"execute": command, "arguments": arguments})
        limit = time.monotonic() + self.patience_s
        while "return" not in (said := self._monitor.hear(limit)):
            assert "error" not in said, said

    def plug(self, up: bool) -> None:
        """The cable at this end, in or out: the card loses its carrier, nothing gets through."""
        self._ask_qemu("set_link", name="card", up=up)

    def kill(self) -> None:
        """Pulls its plug."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._control.close()
            self._monitor.close()
