# SPDX-License-Identifier: MIT
"""The cuda device before a stand-in for the driver: nothing here says anything about a GPU.

What it shows: the calls, their arguments and their order are right when streams are as late
and as unordered as they may be; and the kernels, run as they are in CUDA C with 32 coroutines
for a warp, copy exactly the bytes they are told to. What needs a GPU is test_conformance.py
on `cuda`, which is run here too, on the stand-in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dmaplane
from dmaplane import UnsupportedError
from dmaplane.stream.cuda import _program

HERE = Path(__file__).parent
SOURCES = HERE / "stand_in"
KERNELS = Path(_program.__file__).parent
ARCHITECTURE = 90


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that takes the stand-in for the driver.

    The kernels are compiled before, here: NVRTC looks for a driver too, and wants a real one.
    """
    try:
        major, _ = _program.compiler_version()
    except UnsupportedError as missing:
        pytest.skip(f"missing-package: {missing}")
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("missing-tool: c++")
    folder = tmp_path_factory.mktemp("stand-in")
    command = [
        compiler,
        "-O2",
        "-U_FORTIFY_SOURCE",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
    ]
    command += ["-Werror", "-shared", "-fPIC", f"-I{KERNELS}", f"-I{SOURCES}"]
    command += ["-o", str(folder / "libcuda.so.1"), *map(str, sorted(SOURCES.glob("*.cpp")))]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not built.returncode, built.stderr
    prepared = pytest.MonkeyPatch()
    prepared.setenv("XDG_CACHE_HOME", str(folder))
    for word in _program.WORDS:
        _program.image_of(_program.copy_program(word, "streaming"), ARCHITECTURE)
    for program in (_program.BULK, _program.CEILING):
        _program.image_of(program, ARCHITECTURE)
    prepared.undo()
    paths = [str(Path(dmaplane.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "XDG_CACHE_HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "STAND_IN_VERSION": f"{major}000",
    }


def _run(environment: dict[str, str], *words: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", *words],
        env={**environment, **more},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=HERE,
    )
    assert not done.returncode, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(
    ("tests", "least"), [("test_conformance.py", 25), ("test_host_pool.py", 15)]
)
def test_every_law_holds_on_the_stand_in(stand_in: dict[str, str], tests: str, least: int) -> None:
    told = _run(
        stand_in,
        *("-m", "pytest", "-q", "-k", "cuda", "-p", "no:cacheprovider", "-p", "no:xdist"),
        str(HERE / tests),
    )
    passed = re.search(r"(\d+) passed", told)
    assert passed, told
    assert int(passed.group(1)) >= least, told
    assert "skipped" not in told, told


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_bytes_are_right_whichever_stream_runs_first(stand_in: dict[str, str], seed: str) -> None:
    _run(stand_in, "cuda_cases.py", "tiers", STAND_IN_SEED=seed)


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("long_lists", {}),
        ("bulk", {}),
        ("without_events", {}),
        ("staged_grids", {"STAND_IN_SEED": "1"}),
        ("staged_grids", {"STAND_IN_SEED": "2"}),
        ("untimed", {}),
        ("foreign", {}),
        ("ceilings", {}),
        ("forked", {}),
        ("unmapped", {}),
        ("mapped", {"STAND_IN_VERSION": "13030"}),
        ("registration", {}),
        ("one_device", {}),
        ("nine_arguments", {"STAND_IN_VERSION": "12080"}),
        ("old_driver", {"STAND_IN_VERSION": "12090"}),
        ("no_batch", {"STAND_IN_VERSION": "12040"}),
        ("failure", {"STAND_IN_FAIL": "3"}),
        ("lost", {"STAND_IN_FAIL": "2", "STAND_IN_CODE": "700"}),
        ("no_device", {"STAND_IN_DEVICES": "0"}),
    ],
)
def test_on_the_stand_in(stand_in: dict[str, str], case: str, settings: dict[str, str]) -> None:
    _run(stand_in, "cuda_cases.py", case, **settings)


@pytest.mark.parametrize("case", ["hung", "hung_at_close", "hung_ring", "hung_ceiling"])
def test_a_kernel_that_never_ends_holds_nobody_for_ever(
    stand_in: dict[str, str], case: str
) -> None:
    _run(stand_in, "cuda_endings.py", case, STAND_IN_HANG="1")


@pytest.mark.parametrize("case", ["closing", "closing_stuck", "closing_busy"])
def test_a_device_closed_under_others_takes_nothing_from_under_them(
    stand_in: dict[str, str], case: str
) -> None:
    _run(stand_in, "cuda_endings.py", case)


PROFILE = """
from dmaplane.stream import Choice, Profile, open_device

with open_device("cuda") as device:
    profile = Profile.measure(device, seconds=0.5)
    there = {tier.name for tier in device.tiers() if tier.available}
    assert there == {"single", "batch", "kernel", "staged"}, there
    assert not profile.failed, profile.failed
    assert {row.tier for row in profile.rows} == there
    assert {row.direction for row in profile.rows} == {"h2d", "d2h"}
    estimates = Choice(profile).estimate(100, 4096, "h2d", extent=True)
    assert {one.tier for one in estimates if one.allowed} == there
"""


def test_a_profile_is_measured_on_the_stand_in(stand_in: dict[str, str]) -> None:
    """Every tier proves its bytes there first; the seconds mean nothing."""
    _run(stand_in, "-c", PROFILE)
