# SPDX-License-Identifier: MIT
"""How doctor reads the real machine: nothing raises, and what is tried is really tried."""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import sys

from dmaplane import doctor


def test_reading_never_raises(tmp_path: pathlib.Path) -> None:
    machine = doctor.Machine(tmp_path)
    (tmp_path / "binary").write_bytes(os.urandom(4096))
    machine.text("/binary")
    machine.selected("/binary")
    assert machine.number("/binary") is None
    assert machine.text("/nothing") is None
    assert machine.names("/nothing") == ()
    assert machine.fields("/nothing") == {}
    assert machine.filesystem_bytes("/nothing") == (0, 0)


def test_memory_is_really_locked() -> None:
    machine = doctor.Machine()
    assert machine.lock_memory(4096) == 0
    # More than there is memory cannot be locked, whatever the rights.
    assert machine.lock_memory(4 * machine.memory_bytes) != 0


def test_a_limit_of_the_shell_is_seen() -> None:
    """As a user without CAP_IPC_LOCK would: the limit is set before Python starts."""
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    assert hard == resource.RLIM_INFINITY or hard >= 65536
    done = subprocess.run(
        [
            "sh",
            "-c",
            "ulimit -S -l 64; exec " + sys.executable + " -c "
            "'from dmaplane import doctor; print(doctor.Machine().memlock_limit_bytes())'",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) == 65536


def test_placing_a_page_answers_for_both_calls() -> None:
    answer = doctor.Machine().place_memory()
    assert answer is None or len(answer) == 2


def test_nodes_are_those_of_the_system() -> None:
    folder = pathlib.Path("/sys/devices/system/node")
    known = sorted(int(path.name[4:]) for path in folder.glob("node[0-9]*"))
    assert list(doctor.Machine().nodes()) == (known or [0])
