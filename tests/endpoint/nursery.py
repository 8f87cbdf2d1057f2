# SPDX-License-Identifier: MIT
"""A process that has no plane and no thread, and forks peers that have.

A fork of the test itself would inherit the sockets and memory of its planes, and what a
dead peer had would stay open in the next one. The nursery is forked before there is a
plane; it takes nothing from the test but the name of a program and a socket. Programs are
functions of peers.py, or of another module that was imported before the nursery was forked.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import traceback
import warnings
from types import ModuleType
from typing import Any

import peers

from dmaplane.testing._rig import PATIENCE_S

LIFE_S = int(30 * PATIENCE_S)
"""A peer that outlives its test ends by itself after this."""


class Peer:
    """A process with a plane, and a socket to talk to it: whole messages, JSON both ways."""

    def __init__(self, pid: int, talk: socket.socket) -> None:
        self.pid = pid
        self._talk = talk
        talk.settimeout(PATIENCE_S)

    def hear(self) -> Any:
        """The next thing it says; what it raised becomes an AssertionError here."""
        said = self._talk.recv(1 << 16)
        assert said, "the peer ended without a word"
        message = json.loads(said)
        assert not (isinstance(message, dict) and "failed" in message), message["failed"]
        return message

    def say(self, message: Any) -> None:
        """Tells it something."""
        self._talk.sendall(json.dumps(message).encode())

    def signal(self, number: int) -> None:
        """SIGSTOP, SIGCONT, ..."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9; when it returns the process is gone, and its fds are closed."""
        gone = os.pidfd_open(self.pid)
        try:
            os.kill(self.pid, signal.SIGKILL)
            assert select.select([gone], [], [], PATIENCE_S)[0], "it does not die"
        finally:
            os.close(gone)
            self._talk.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._talk.fileno() >= 0:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                self.signal(signal.SIGCONT)
                self.kill()
            self._talk.close()


class Nursery:
    """The process that forks them."""

    def __init__(self, programs: ModuleType = peers) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                self._orders.close()
                _run(theirs, programs)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        self._orders.settimeout(PATIENCE_S)

    def peer(self, program: str, **settings: Any) -> Peer:
        """Starts a program with these settings."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = json.dumps([program, settings]).encode()
        socket.send_fds(self._orders, [order], [theirs.fileno()])
        theirs.close()
        return Peer(int(self._orders.recv(64)), ours)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        os.waitpid(self._pid, 0)


def _run(orders: socket.socket, programs: ModuleType) -> None:
    """Until the test closes its end: forks what it is told to."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        order, fds, _, _ = socket.recv_fds(orders, 1 << 16, 1)
        if not order:
            return
        pid = os.fork()
        if pid == 0:
            orders.close()
            _live(json.loads(order), socket.socket(fileno=fds[0]), programs)
        os.close(fds[0])
        orders.sendall(str(pid).encode())


def _live(order: tuple[str, dict[str, Any]], talk: socket.socket, programs: ModuleType) -> None:
    """The life of a peer."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.alarm(LIFE_S)
        program, settings = order
        getattr(programs, program)(peers.Talk(talk), **settings)
        status = 0
    except BaseException:
        with contextlib.suppress(OSError):
            talk.sendall(json.dumps({"failed": traceback.format_exc()[-3000:]}).encode())
    finally:
        os._exit(status)
