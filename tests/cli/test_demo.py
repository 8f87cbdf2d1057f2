# SPDX-License-Identifier: MIT
"""The demo of buffers: it passes, it says so, and it fails when a promise is broken."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Any

import pytest

import dmaplane
from dmaplane import demo
from dmaplane.cli import _output

if TYPE_CHECKING:
    from conftest import Commands

NAMES = (
    "placed", "streamed", "handed over", "protected", "killed", "nothing leaked", "intact",
    "all returned",
)  # fmt: skip


def test_demo_passes_and_shows_a_table(dmaplane_command: Commands) -> None:
    answer = dmaplane_command("demo", "--buffers", "--size", "16M")
    assert answer.code == 0, answer
    assert len(answer.widest()) <= 80, answer.widest()
    for name in NAMES:
        assert f"{name} " in answer.out
    assert "all checks passed" in answer.out
    assert "GB/s" in answer.out


def test_demo_json(dmaplane_command: Commands) -> None:
    answer = dmaplane_command("demo", "--buffers", "--size", "10M", "--json")
    assert answer.code == 0, answer
    result = answer.json
    assert result["plane"] in ("embedded", "kernel")
    assert result["path"] == "local"
    assert result["bytes"] == 10 << 20
    assert result["gb_per_s"] > 0
    assert result["memcpy_gb_per_s"] > 0
    assert [check["name"] for check in result["checks"]] == list(NAMES)
    assert all(check["passed"] for check in result["checks"])


def test_a_size_that_is_no_multiple_of_anything() -> None:
    outcome = demo.run(length_bytes=(3 << 20) + 12345)
    assert outcome.passed, outcome.checks


def test_progress_covers_every_stage() -> None:
    told: dict[str, list[float]] = {}
    demo.run(length_bytes=4 << 20, progress=lambda s, p: told.setdefault(s, []).append(p))
    assert list(told) == ["fill", "stream", "hand over", "verify"]
    for parts in told.values():
        assert parts == sorted(parts)
        assert parts[-1] == pytest.approx(1.0)


def test_wrong_bytes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a checksum that changes, no comparison may come out right."""
    real = dmaplane.crc32c
    calls = iter(range(1 << 30))

    def lying(data: Any, seed: int = 0) -> int:
        return real(data, seed) ^ zlib.crc32(bytes([next(calls) % 251]))

    monkeypatch.setattr(dmaplane, "crc32c", lying)
    outcome = demo.run(length_bytes=4 << 20)
    failed = {step.name for step in outcome.checks if not step.passed}
    assert {"streamed", "handed over", "intact"} <= failed


def test_a_leaked_descriptor_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    leaked: list[int] = []
    real = demo._Demo.intact

    def leaking(self: Any) -> None:
        real(self)
        leaked.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))

    monkeypatch.setattr(demo._Demo, "intact", leaking)
    try:
        outcome = demo.run(length_bytes=1 << 20)
    finally:
        for fd in leaked:
            os.close(fd)
    failed = {step.name: step.detail for step in outcome.checks if not step.passed}
    assert list(failed) == ["all returned"]
    assert "descriptors" in failed["all returned"]


def test_a_child_that_cannot_start_is_a_failed_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(demo.sys, "executable", str(broken))
    outcome = demo.run(length_bytes=1 << 20)
    failed = {step.name: step.detail for step in outcome.checks if not step.passed}
    assert "the child ended without an answer" in failed["handed over"]
    assert "killed" in failed


@pytest.mark.parametrize(
    ("text", "length_bytes"),
    [
        ("1", 1),
        ("4096", 4096),
        ("64k", 65536),
        ("2MiB", 2 << 20),
        ("1G", 1 << 30),
        ("3gb", 3 << 30),
    ],
)
def test_sizes(text: str, length_bytes: int) -> None:
    assert _output.parse_size(text) == length_bytes


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "G", "1X", "1 2", "٣"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        _output.parse_size(text)
