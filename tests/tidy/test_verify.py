# SPDX-License-Identifier: MIT
"""The runner of `make test` counts right and never takes silence for success."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house_verify", ROOT / "tools/verify.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


verify = load()


@pytest.fixture(autouse=True)
def logs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "ROOT", tmp_path)
    monkeypatch.setattr(verify, "LOGS", tmp_path)


def run_stage(
    *commands: tuple[str, Callable[[str], Any] | None], tools: tuple[str, ...] = ()
) -> Any:
    steps = [verify.Step([sys.executable, "-c", code], count) for code, count in commands]
    stage = verify.Stage("trial", lambda _: steps, tools)
    return verify.run_stage(stage, argparse.Namespace(seed=None))


@pytest.mark.parametrize(
    ("count", "text", "passed", "failed", "skipped"),
    [
        ("ctest_tally", "88% tests passed, 2 tests failed out of 16\n", 14, 2, 0),
        ("pytest_tally", "== 4 failed, 499 passed, 2 skipped in 56.93s ==\n", 499, 4, 2),
        ("pytest_tally", "3 passed, 1 warning in 0.10s\n", 3, 0, 0),
        ("pytest_tally", "1 passed, 2 errors in 0.10s\n", 1, 2, 0),
        ("pytest_tally", "1 passed, 1 xpassed in 0.10s\n", 1, 1, 0),
        ("plain_tally", "rule  ok\n11 passed, 1 failed\n", 11, 1, 0),
    ],
)
def test_closing_lines_are_read(
    count: str, text: str, passed: int, failed: int, skipped: int
) -> None:
    tally = getattr(verify, count)(text)
    assert (tally.passed, tally.failed, tally.skipped) == (passed, failed, skipped)


@pytest.mark.parametrize("count", ["ctest_tally", "pytest_tally", "plain_tally"])
def test_no_closing_line_is_no_tally(count: str) -> None:
    assert getattr(verify, count)("Segmentation fault\n") is None


def test_a_good_command_is_one_pass() -> None:
    tally = run_stage(("pass", None), ("print('done')", verify.one_check))
    assert str(tally) == "1 passed, 0 failed"


def test_a_failed_build_fails_the_stage_and_ends_it() -> None:
    tally = run_stage(("raise SystemExit(1)", None), ("pass", verify.one_check))
    assert str(tally) == "0 passed, 1 failed"


def test_a_crash_after_a_good_closing_line_is_a_failure() -> None:
    tally = run_stage(("print('3 passed, 0 failed'); raise SystemExit(139)", verify.plain_tally))
    assert tally.failed == 1


def test_running_no_test_is_a_failure() -> None:
    tally = run_stage(("pass", verify.pytest_tally))
    assert tally.failed == 1
    assert tally.reasons == ["ran-nothing: trial"]


@pytest.mark.parametrize(("in_ci", "skipped", "failed"), [(False, 1, 0), (True, 0, 1)])
def test_a_missing_tool_is_a_skip_but_not_in_ci(
    in_ci: bool, skipped: int, failed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "IN_CI", in_ci)
    tally = run_stage(("pass", verify.one_check), tools=("no-such-tool",))
    assert (tally.skipped, tally.failed) == (skipped, failed)
    assert tally.reasons == ["missing-tool: trial: no-such-tool"]


def test_a_stage_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(verify, "STAGE_LIMIT_S", 0.2)
    tally = run_stage(("import time; time.sleep(60)", verify.one_check))
    assert tally.failed == 1
