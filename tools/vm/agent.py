#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The host's hand in a machine of a pair: starts programs, passes their lines on, ends them.

Runs in the guest, on the virtio port "control"; node.py is the other end. Both ways a line
is a JSON object. Orders:

  {"do": "start", "words": [...]}                     a program
  {"do": "fork", "module", "function", "settings"}    a function, in a fork of this process:
                                                      what it imports is imported once
  {"do": "load", "module", "paths": [...]}            imports it
  {"do": "tell", "pid", "line"}                       a line for its standard input
  {"do": "signal", "pid", "number"}
  {"do": "log"}                                       what the kernel complained about so far

Each is answered by one {"answer": ...} or {"failed": ...}, in order. Besides that come
{"pid", "line"} and {"pid", "status"}, which is a program's last word. One thread and one
loop: a fork of it inherits nothing that another thread holds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kmsg

PORT = "control"
CHUNK = 1 << 16
NOBODY_S = 0.05


def find_port(name: str) -> Path:
    """The device of the virtio port that QEMU calls @name."""
    subprocess.run(["modprobe", "-q", "virtio_console"], check=False)
    while True:
        for path in Path("/sys/class/virtio-ports").glob("*/name"):
            if path.read_text().strip() == name:
                return Path("/dev") / path.parent.name
        time.sleep(NOBODY_S)


class Program:
    """A child: its process, its two pipes, and what it said of a line so far."""

    def __init__(self, pid: int, input_fd: int, output_fd: int) -> None:
        self.pid, self.input_fd, self.output_fd = pid, input_fd, output_fd
        self.end_fd = os.pidfd_open(pid)
        self._rest = b""
        os.set_blocking(output_fd, False)

    def lines(self, *, last: bool = False) -> list[str]:
        """Whole lines that came since; with @last what is no whole line too."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.output_fd, CHUNK):
                self._rest += data
        *whole, self._rest = self._rest.split(b"\n")
        if last and self._rest:
            whole.append(self._rest)
        return [line.decode(errors="replace") for line in whole]

    def close(self) -> None:
        for fd in (self.input_fd, self.output_fd, self.end_fd):
            os.close(fd)


def _pipes() -> tuple[int, int, Callable[[int], Program]]:
    """A child's standard input and output, and what makes a Program of the child."""
    theirs_in, input_fd = os.pipe()
    output_fd, theirs_out = os.pipe()
    return theirs_in, theirs_out, lambda pid: Program(pid, input_fd, output_fd)


class Agent:
    """All the programs, and the port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._orders = b""
        self._programs: dict[int, Program] = {}
        self._log = kmsg.Reader()
        self._taint = kmsg.taint()

    def run(self) -> None:
        """Until the host lets go of the port."""
        self._say({"answer": "hello"})
        while True:
            poll = select.poll()
            poll.register(self._port, select.POLLIN)
            for program in self._programs.values():
                poll.register(program.end_fd, select.POLLIN)
                poll.register(program.output_fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            for program in [*self._programs.values()]:
                if ready & {program.output_fd, program.end_fd}:
                    self._attend(program, ended=program.end_fd in ready)
            if self._port in ready and not self._take_orders():
                return

    def _say(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._port, data) :]

    def _attend(self, program: Program, *, ended: bool) -> None:
        for line in program.lines(last=ended):
            self._say({"pid": program.pid, "line": line})
        if ended:
            _, status = os.waitpid(program.pid, 0)
            del self._programs[program.pid]
            program.close()
            self._say({"pid": program.pid, "status": os.waitstatus_to_exitcode(status)})
        elif not select.select([program.end_fd], [], [], 0)[0]:
            time.sleep(0.001)  # a closed output is ready for ever; its process still works

    def _take_orders(self) -> bool:
        data = os.read(self._port, CHUNK)
        if not data:
            return False
        self._orders += data
        *orders, self._orders = self._orders.split(b"\n")
        for line in orders:
            order = json.loads(line)
            try:
                answer = getattr(self, "do_" + order.pop("do"))(**order)
                self._say({"answer": answer})
            except Exception:
                self._say({"failed": traceback.format_exc()[-3000:]})
        return True

    def do_start(self, words: list[str]) -> int:
        theirs_in, theirs_out, program_of = _pipes()
        child = subprocess.Popen(
            words,
            stdin=theirs_in,
            stdout=theirs_out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        child.returncode = 0  # whoever waits for it is this class
        return self._take(program_of(child.pid), theirs_in, theirs_out)

    def do_load(self, module: str, paths: list[str]) -> None:
        sys.path[:0] = [path for path in paths if path not in sys.path]
        importlib.import_module(module)

    def do_fork(self, module: str, function: str, settings: dict[str, Any]) -> int:
        target = getattr(importlib.import_module(module), function)
        theirs_in, theirs_out, program_of = _pipes()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.dup2(theirs_in, 0)
            os.dup2(theirs_out, 1)
            os.closerange(3, 1024)
            status = 1
            try:
                target(**settings)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        return self._take(program_of(pid), theirs_in, theirs_out)

    def _take(self, program: Program, *its_ends: int) -> int:
        for fd in its_ends:
            os.close(fd)
        self._programs[program.pid] = program
        return program.pid

    def do_tell(self, pid: int, line: str) -> None:
        if pid in self._programs:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._programs[pid].input_fd, line.encode() + b"\n")

    def do_signal(self, pid: int, number: int) -> None:
        if pid in self._programs:  # else it has just ended, and its number may be another's
            signal.pidfd_send_signal(self._programs[pid].end_fd, number)

    def do_log(self) -> list[str]:
        said = [line for line in self._log.lines() if kmsg.is_splat(line)]
        if kmsg.taint() != self._taint:
            said.append(f"the kernel is tainted: {kmsg.taint():#x}")
        if not kmsg.lockdep_is_on():
            said.append("lockdep has switched itself off")
        return said


def main() -> None:
    # What a program is told when it is gone already is no reason to end.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    Agent(os.open(find_port(PORT), os.O_RDWR | os.O_CLOEXEC)).run()


if __name__ == "__main__":
    main()
