# SPDX-License-Identifier: MIT
"""Every command as a process: exit codes, JSON, 80 columns, help."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

import dmaplane
from dmaplane import doctor

if TYPE_CHECKING:
    from conftest import Commands

COMMANDS = ("doctor", "topology", "demo", "bench", "top", "kv", "stream")
PARTS = ("kv prefill", "kv decode", "kv leaks", "stream explain")


@pytest.mark.parametrize("command", [*COMMANDS[:-2], *PARTS])
def test_help_helps(dmaplane_command: Commands, command: str) -> None:
    answer = dmaplane_command(*command.split(), "--help")
    assert answer.code == 0
    assert answer.err == ""
    assert "--json" in answer.out
    assert "Exit codes:" in answer.out
    assert re.search(rf"^ +dmaplane {command}", answer.out, re.MULTILINE), "no example"
    assert len(answer.widest()) <= 80, answer.widest()


def test_help_of_the_whole_names_every_command(dmaplane_command: Commands) -> None:
    answer = dmaplane_command("--help")
    assert answer.code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", answer.out, re.MULTILINE)
    summaries = answer.out.partition("Commands:")[2]
    assert "..." not in summaries, "a summary does not fit"
    assert len(answer.widest()) <= 80


def test_nothing_said_is_help_and_wrong_usage(dmaplane_command: Commands) -> None:
    answer = dmaplane_command()
    assert answer.code == 2
    assert answer.out == ""
    assert "Usage:" in answer.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("nonsense",), "nonsense"),
        (("doctor", "--nonsense"), "--nonsense"),
        (("doctor", "--require", "teapot"), "teapot"),
        (("topology", "--plane", "paper"), "paper"),
        (("demo", "--size", "lots"), "lots"),
        (("demo", "--size", "0"), "no size"),
        (("demo", "--node", "-1"), "--node"),
        (("demo", "--buffers", "--node", "63"), "node: 63 has no memory"),
        (("demo", "--size", "1M"), "--buffers"),
        (("demo", "--picture", "/nowhere/at/all.png"), "/nowhere/at"),
        (("demo", "--engine", "steam"), "steam"),
        (("demo", "--require", "pigeon"), "pigeon"),
        (("kv",), "Usage"),
        (("stream",), "Usage"),
        (("stream", "explain", "--count", "3"), "both or neither"),
        (("kv", "prefill", "--order", "XYZ"), "XYZ"),
        (("kv", "prefill", "--set", "layers"), "NAME=VALUE"),
        (("kv", "decode", "--http", "here"), "HOST:PORT"),
        (("kv", "leaks", "--server", "here"), "HOST:PORT"),
        (("bench", "teapot"), "teapot"),
        (("bench", "copy", "--out", "/nowhere/at/all.json"), "/nowhere/at"),
        (("top", "--interval", "0"), "0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage(dmaplane_command: Commands, words: tuple[str, ...], named: str) -> None:
    answer = dmaplane_command(*words)
    assert answer.code == 2, answer
    assert answer.out == ""
    assert named in answer.err


@pytest.mark.parametrize("command", ["topology", "demo"])
def test_a_plane_that_is_not_there(dmaplane_command: Commands, command: str) -> None:
    library = {"DMAPLANE_LIBRARY": "/nowhere/libdmaplane.so"}
    answer = dmaplane_command(command, "--plane", "embedded", **library)
    assert answer.code == 1
    assert answer.out == ""
    assert "/nowhere/libdmaplane.so" in answer.err
    answer = dmaplane_command(command, "--plane", "embedded", "--json", **library)
    assert answer.code == 1
    assert answer.json["error"]["kind"] == "UnsupportedError"


def test_doctor(dmaplane_command: Commands) -> None:
    answer = dmaplane_command("doctor")
    assert answer.code == 0, answer
    assert answer.err == ""
    assert len(answer.widest()) <= 80, answer.widest()
    for check in doctor.CHECKS:
        assert re.search(rf"^(ok|warn|lack) +{check.name} ", answer.out, re.MULTILINE)


def test_doctor_json_has_its_schema(dmaplane_command: Commands) -> None:
    answer = dmaplane_command("doctor", "--json")
    assert answer.code == 0
    assert answer.err == ""
    report = answer.json
    assert set(report) == {"machine", "checks", "planes"}
    assert set(report["machine"]) == {
        "kernel", "architecture", "distribution", "cpus", "memory_bytes", "nodes", "container",
        "user_id",
    }  # fmt: skip
    assert [check["name"] for check in report["checks"]] == [c.name for c in doctor.CHECKS]
    for check in report["checks"]:
        assert set(check) == {"name", "verdict", "finding", "cause", "fix"}
        assert check["verdict"] in ("ok", "warn", "lack")
    assert report["planes"]["embedded"]["usable"] is True
    assert set(report["planes"]) == {"embedded", "kernel"}
    embedded = next(check for check in report["checks"] if check["name"] == "embedded-plane")
    assert "1 MiB copied and checked" in embedded["finding"]


def test_doctor_require_decides_the_exit_code(dmaplane_command: Commands) -> None:
    report = dmaplane_command("doctor", "--json").json
    for check in report["checks"]:
        if check["verdict"] == "lack":
            assert dmaplane_command("doctor", "--require", check["name"]).code == 1
            break
    assert dmaplane_command("doctor", "--require", "embedded-plane").code == 0


def test_doctor_without_library_fails_and_says_why(dmaplane_command: Commands) -> None:
    answer = dmaplane_command("doctor", "--json", DMAPLANE_LIBRARY="/nowhere/libdmaplane.so")
    embedded = answer.json["checks"][0]
    assert embedded["verdict"] == "lack"
    assert "/nowhere/libdmaplane.so" in embedded["cause"]
    if not answer.json["planes"]["kernel"]["usable"]:
        assert answer.code == 1


def test_doctor_changes_nothing(dmaplane_command: Commands) -> None:
    first, second = (dmaplane_command("doctor", "--json").json for _ in range(2))
    verdicts = [[(c["name"], c["verdict"]) for c in report["checks"]] for report in (first, second)]
    assert verdicts[0] == verdicts[1]


def test_topology(dmaplane_command: Commands) -> None:
    answer = dmaplane_command("topology")
    assert answer.code == 0
    assert answer.err == ""
    assert len(answer.widest()) <= 80
    assert "node 0" in answer.out
    found = dmaplane_command("topology", "--json").json
    with dmaplane.open() as plane:
        known = plane.topology()
    assert [node["node"] for node in found["nodes"]] == [node.node for node in known.nodes]
    assert [node["memory_bytes"] for node in found["nodes"]] == [
        node.memory_bytes for node in known.nodes
    ]
    assert len(found["nics"]) == len(known.nics)
    assert len(found["gpus"]) == len(known.gpus)


def test_start_is_quick(dmaplane_command: Commands) -> None:
    def once() -> float:
        start = time.monotonic()
        dmaplane_command("--help")
        return time.monotonic() - start

    # About 0.2 s on an idle machine; the best of five keeps a busy one from deciding.
    assert min(once() for _ in range(5)) < 1.0


def test_bench_names_what_it_can_measure(dmaplane_command: Commands) -> None:
    names = dmaplane_command("bench", "list", "--json").json["benches"]
    assert {"copy", "ring", "alloc", "observe", "scale"} <= set(names)
    shown = dmaplane_command("bench", "list")
    named = [line.split()[0] for line in shown.out.splitlines() if line[:1] != " "]
    assert named == list(names)
    assert len(shown.widest()) <= 80


def test_a_reader_that_leaves_is_no_error() -> None:
    import subprocess
    import sys

    done = subprocess.run(
        f"{sys.executable} -m dmaplane.cli doctor | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
