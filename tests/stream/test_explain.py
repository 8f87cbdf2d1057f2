# SPDX-License-Identifier: MIT
"""`dmaplane stream explain` as a process: what it says, to people and to programs."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest


class Answer:
    """What the command said."""

    def __init__(self, folder: pathlib.Path, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "dmaplane.cli", "stream", *words],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "COLUMNS": "80", "TERM": "dumb", "XDG_CACHE_HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A cache folder with a profile of the simulated device in it."""
    made = tmp_path_factory.mktemp("cache")
    answer = Answer(made, "explain", "--device", "sim", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["origin"].startswith("measured now (none was kept)")
    return made


def test_the_table_fits_and_names_a_way_for_each_size_and_count(folder: pathlib.Path) -> None:
    answer = Answer(folder, "explain", "--device", "sim")
    assert answer.code == 0
    assert answer.err == ""
    assert "host to device" in answer.out
    assert "device to host" in answer.out
    assert "no nic: the simulation has no network card" in answer.out
    lines = answer.out.splitlines()[1:]  # the first names a file
    assert max(map(len, lines)) <= 80
    assert sum(line.count("kernel ") for line in lines) > 10
    assert "…" not in answer.out


def test_json_has_a_choice_for_each_cell(folder: pathlib.Path) -> None:
    answer = Answer(folder, "explain", "--device", "sim", "--json", "--direction", "d2h")
    told = json.loads(answer.out)
    assert {one["direction"] for one in told["choices"]} == {"d2h"}
    assert len(told["choices"]) == 14 * 5
    assert all(one["tier"] and one["bytes_per_second"] > 0 for one in told["choices"])
    assert told["origin"].startswith("kept in ")
    assert {one["name"] for one in told["tiers"]} >= {"single", "batch", "kernel", "staged"}


def test_a_call_is_explained_tier_by_tier(folder: pathlib.Path) -> None:
    words = ("explain", "--device", "sim", "--count", "4096", "--size", "16K")
    answer = Answer(folder, *words, "--direction", "h2d")
    assert answer.code == 0
    assert "> kernel" in answer.out
    assert "the cheapest" in answer.out
    assert "it needs the host's side in one piece: an extent of a HostPool" in " ".join(
        answer.out.split()
    )
    told = json.loads(Answer(folder, *words, "--extent", "--json").out)
    assert told["call"] == {
        "count": 4096, "block_bytes": 16384, "extent": True, "busy": False,
    }  # fmt: skip
    first = next(one for one in told["estimates"] if one["direction"] == "h2d")
    assert first["tier"] == "staged"
    assert first["allowed"]


def test_refresh_measures_again(folder: pathlib.Path) -> None:
    answer = Answer(folder, "explain", "--device", "sim", "--refresh", "--json")
    told = json.loads(answer.out)
    assert told["origin"].startswith("measured now (asked to)")
    assert told["measured_seconds"] > 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--count", "3"), "both or neither"),
        (("--size", "4K"), "both or neither"),
        (("--count", "0", "--size", "4K"), "--count"),
        (("--count", "1", "--size", "lots"), "lots"),
        (("--count", "1", "--size", "2T"), "more than 1T"),
        (("--direction", "up"), "up"),
        (("--device", "teapot"), "teapot"),
        (("--device", "sim", "--nic", "teapot"), "teapot"),
    ],
)
def test_wrong_usage_is_told(folder: pathlib.Path, words: tuple[str, ...], named: str) -> None:
    answer = Answer(folder, "explain", *words)
    assert answer.code == 2
    assert named in answer.err
    assert answer.out == ""
