# SPDX-License-Identifier: MIT
"""The demo of KV transfer: it passes, shows it, and fails when a promise is broken."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("h11", reason="missing-package: h11")
pytest.importorskip("PIL", reason="missing-package: pillow")

from PIL import Image

import dmaplane
from dmaplane.kv.demo import Done, Outcome, _run, end, groups
from dmaplane.kv.demo._children import child
from dmaplane.kv.demo._picture import WIDTH, draw

SMALL = (
    "--set", "layers=3", "--set", "hidden=64", "--set", "heads=4", "--set", "kv_heads=2",
    "--set", "head_size=16", "--set", "inner=96", "--set", "vocabulary=256",
    "--set", "spread=0.2",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def dmaplane_command(*words: str, **changes: str) -> Answer:
    done = subprocess.run(
        [sys.executable, "-m", "dmaplane.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "80", "TERM": "dumb", **changes},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Answer(done.returncode, done.stdout, done.stderr)


def demo(folder: Path, *words: str) -> Answer:
    picture = str(folder / "timeline.png")
    return dmaplane_command("demo", *SMALL, "--picture", picture, *words)


def test_the_demo_passes_and_shows_a_timeline_and_a_table(tmp_path: Path) -> None:
    answer = demo(tmp_path, "--requests", "2", "--prompt-tokens", "64", "--max-tokens", "8")
    assert answer.code == 0, answer
    assert "tokens identical to one process doing both: 2 of 2 requests" in answer.out
    assert "control: one zeroed block" in answer.out
    assert "nothing left behind" in answer.out
    for word in ("request 1", "request 2", "chunks", "GB/s", "stalls", "CRC", "prefill", "same"):
        assert word in answer.out
    named = str(tmp_path)
    wide = [line for line in answer.out.splitlines() if len(line) > 80 and named not in line]
    assert not wide
    with Image.open(tmp_path / "timeline.png") as image:
        assert image.format == "PNG"
        assert image.width == WIDTH
        assert image.height > 300
        found = {colour for _, colour in image.getcolors(1 << 24)}
        assert len(found) > 8, "bars, letters and lines have more colours than that"


def test_the_demo_as_json(tmp_path: Path) -> None:
    words = ("--requests", "3", "--prompt-tokens", "40", "--max-tokens", "32", "--json")
    answer = demo(tmp_path, *words)
    assert answer.code == 0, answer
    result = json.loads(answer.out)
    assert result["requests"] == len(result["per_request"]) == 3
    assert result["tokens_identical"] is True
    assert result["control_differs"] is True
    assert result["left_behind"] == []
    assert result["path"] == "shm"
    assert result["plane"] in ("embedded", "kernel")
    assert result["gb_per_s"] > 0
    assert result["stalls"] >= 0
    token_bytes = 2 * 3 * 2 * 16 * 4
    for one in result["per_request"]:
        assert one["bytes"] >= (one["prompt_tokens"] - 1) * token_bytes
        assert len(one["tokens"]) == 32
        assert one["distinct"] >= 20
        assert one["layers"] == sorted(one["layers"])
    assert result["bytes"] == sum(one["bytes"] for one in result["per_request"])


def test_the_demo_takes_the_path_it_was_told_to(tmp_path: Path) -> None:
    words = ("--requests", "1", "--prompt-tokens", "20", "--max-tokens", "2", "--require", "tcp")
    answer = demo(tmp_path, *words, "--json")
    assert answer.code == 0, answer
    assert json.loads(answer.out)["path"] == "tcp"


def test_a_prefill_server_that_runs_already_is_used(tmp_path: Path) -> None:
    with child("prefill", "--listen", "127.0.0.1:0", *SMALL) as prefill:
        words = ("--requests", "1", "--prompt-tokens", "20", "--max-tokens", "2", "--json")
        answer = demo(tmp_path, "--peer", prefill.told["address"], *words)
        assert answer.code == 0, answer
        assert json.loads(answer.out)["passed"] is True
        assert prefill.process.poll() is None
    assert prefill.process.poll() == 0


def test_a_peer_of_another_model_is_an_error_that_says_so(tmp_path: Path) -> None:
    with child("prefill", "--listen", "127.0.0.1:0", *SMALL, "--set", "seed=9") as prefill:
        answer = demo(tmp_path, "--peer", prefill.told["address"])
        assert answer.code == 1
        assert "model" in answer.err


def test_a_peer_beyond_this_machine_needs_a_secret(tmp_path: Path) -> None:
    answer = demo(tmp_path, "--peer", "192.0.2.1")
    assert answer.code == 1
    assert "--secret-file" in answer.err


def test_servers_end_with_whoever_started_them() -> None:
    """kill -9 of the parent closes the pipe that they watch."""
    program = (
        "import sys, time\n"
        "from dmaplane.kv.demo._children import child\n"
        f"with child('prefill', '--listen', '127.0.0.1:0', *{SMALL!r}) as one:\n"
        "    print(one.process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    gone = os.pidfd_open(pid)
    try:
        parent.kill()
        parent.wait()
        import select

        assert select.select([gone], [], [], 20)[0], "the server lives on"
    finally:
        os.close(gone)
        parent.stdout.close()


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(dmaplane.UnreachableError, match="nobody listens there"):
        with child("decode", "--prefill", "127.0.0.1:1", "--http", "127.0.0.1:0", *SMALL):
            pass


def test_leaks_names_holder_age_and_trace() -> None:
    with child("prefill", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *SMALL) as prefill:
        answer = dmaplane_command("kv", "leaks", "--server", prefill.told["http"])
        assert answer.code == 0, answer
        assert "no lease is older than 0.0 s" in answer.out
        found = dmaplane_command("kv", "leaks", "--server", prefill.told["http"], "--json")
        assert json.loads(found.out)["leases"] == []
        assert json.loads(found.out)["account"]["leased"] == 0
    answer = dmaplane_command("kv", "leaks", "--server", prefill.told["http"])
    assert answer.code == 1
    assert "no server answers" in answer.err


# ---- what was found, without processes


def outcome(**changes: Any) -> Outcome:
    one = Done(
        prompt_tokens=10,
        tokens=(1, 2, 3),
        identical=True,
        sent=0.0,
        announced=0.1,
        computed=(0.2, 0.3),
        layers=(0.21, 0.32),
        complete=0.33,
        decoded=(0.4, 0.5, 0.6),
        bytes=3_000_000,
        chunks=4,
        stalls=1,
        checksum_seconds=0.001,
        prefill_seconds=0.2,
        path="shm",
    )
    fields: dict[str, Any] = {
        "plane": "embedded",
        "reason": "a test",
        "path": "shm",
        "engine": "numpy",
        "copied": "",
        "per_request": (one, dataclasses.replace(one, **changes)),
        "control_differs": True,
        "left_behind": (),
        "picture": "",
        "seconds": 1.0,
    }
    return Outcome(**fields)


def test_every_way_to_fail_fails_the_whole() -> None:
    good = outcome()
    assert good.passed
    assert not outcome(identical=False).passed
    assert not dataclasses.replace(good, control_differs=False).passed
    assert not dataclasses.replace(good, left_behind=("process 1",)).passed


def test_rates_and_times_are_of_what_was_on_its_way() -> None:
    good = outcome()
    assert good.total("wire_seconds") == pytest.approx(2 * 0.03)
    assert good.gb_per_s == pytest.approx(6e6 / 0.06 / 1e9)
    assert good.per_request[0].tail_seconds == pytest.approx(0.03)


def test_bars_are_in_order_and_do_not_overlap() -> None:
    found = outcome(computed=(0.2, 0.2), layers=(0.35, 0.39))
    for group in groups(found):
        assert [lane.name for lane in group.lanes] == ["prefill", "transfer", "decode"]
        for lane in group.lanes:
            moments = [moment for bar in lane.bars for moment in (bar.begin, bar.end)]
            assert moments == sorted(moments)
            assert moments[-1] <= end(found)


def test_the_picture_stays_inside_itself_however_long_it_took(tmp_path: Path) -> None:
    for scale in (1e-6, 1.0, 1e5):
        found = outcome(decoded=(0.4 * scale, 0.5 * scale, 0.6 * scale + 1e-7))
        draw(found, str(tmp_path / "one.png"))
        with Image.open(tmp_path / "one.png") as image:
            assert image.width == WIDTH


def test_tokens_that_differ_fail_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dmaplane.kv.serve import SiteSettings

    real = _run._single

    def lying(*arguments: Any) -> Any:
        answers, control = real(*arguments)
        answers[1][0] += 1
        return answers, control

    monkeypatch.setattr(_run, "_single", lying)
    pairs = tuple(word.partition("=")[::2] for word in SMALL[1::2])
    site = SiteSettings(engine_settings=tuple((name, json.loads(value)) for name, value in pairs))
    found = _run.run(
        _run.DemoSettings(
            site=site,
            requests=2,
            prompt_tokens=20,
            max_tokens=4,
            picture=str(tmp_path / "one.png"),
        )
    )
    assert [one.identical for one in found.per_request] == [True, False]
    assert not found.passed


def test_what_a_child_left_behind_is_found() -> None:
    from dmaplane.kv.demo._traces import Before

    before = Before()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        started = time.monotonic()
        assert before.left() == (f"process {process.pid}",)
        assert time.monotonic() - started >= 1.0, "it gives those on their way out a moment"
    finally:
        process.kill()
        process.wait()
    assert before.left() == ()


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="missing-package: transformers"
)
def test_the_demo_with_the_other_engine(tmp_path: Path) -> None:
    words = ("--engine", "transformers", "--requests", "2", "--prompt-tokens", "48", "--json")
    answer = demo(tmp_path, *words)
    assert answer.code == 0, answer
    result = json.loads(answer.out)
    assert result["tokens_identical"] is True
    assert result["copied"], "its cache cannot live in our memory"
