# SPDX-License-Identifier: MIT
"""`bench stream-tiers`: all of it on the simulated device, and what can be wrong in its parts."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmaplane import bench, stream
from dmaplane._embedded import EmbeddedPlane
from dmaplane._errors import (
    CopyError,
    DeviceLostError,
    InvalidError,
    NoMemoryError,
    TimedOutError,
    UnsupportedError,
)
from dmaplane.bench import (
    _result,
    _tiers_bed,
    _tiers_blocks,
    _tiers_claims,
    _tiers_machine,
    _tiers_picture,
    _tiers_plan,
    stream_tiers,
)
from dmaplane.bench._tiers_bed import (
    DIRECTIONS,
    KIB,
    MIB,
    QUICK,
    Bed,
    Box,
    Cell,
    Effort,
    Took,
    size_text,
    viewed,
    whole,
)
from dmaplane.bench._tiers_findings import Findings
from dmaplane.bench._tiers_sheet import Experiment, NotHereError, Resumed, Sheet, perform
from dmaplane.stream import Copies, HostPool

SMALL = Effort(1 * MIB, 2 * MIB, 3, (4 * KIB,), 0.01, patience_s=0.5, cell_s=3.0)


@contextlib.contextmanager
def sheet_of(**settings: Any) -> Iterator[Sheet]:
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(EmbeddedPlane("of a test"))
        device = stack.enter_context(stream.open_device("sim", **settings))
        bed = Bed(stack, plane, device, SMALL)
        yield Sheet.over(bed, _result.Measured("embedded"), lambda what: None)


@pytest.fixture
def sheet() -> Iterator[Sheet]:
    with sheet_of() as made:
        yield made


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole run and where it drew: few sizes, and all the time there is."""
    plot = tmp_path_factory.mktemp("tiers") / "out.png"
    effort = dataclasses.replace(QUICK, total_bytes=2 * MIB, sizes=(4 * KIB, 64 * KIB), share=0.99)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_tiers, "QUICK", effort)
        patch.setattr(stream_tiers, "QUICK_SECONDS", 600.0)
        result = bench.run("stream-tiers", quick=True, progress=False, device="sim", plot=str(plot))
    return {"result": json.loads(json.dumps(result, allow_nan=False)), "plot": plot}


def test_the_command_says_what_is_wrong_with_a_device_and_has_the_bench_in_its_list() -> None:
    command = [sys.executable, "-m", "dmaplane.bench"]
    done = subprocess.run(
        [*command, "stream-tiers", "--device", "abacus", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "abacus" in done.stderr
    listed = subprocess.run(
        [*command, "--list"], capture_output=True, text=True, check=False, timeout=120
    )
    assert "\nstream-tiers How fast" in listed.stdout


def test_the_dry_run_leaves_no_experiment_of_the_plan_out(dry_run: dict[str, Any]) -> None:
    notes = dry_run["result"]["notes"]
    states = {(one["number"], one["name"]): one for one in notes["experiments"]}
    assert {number for number, _ in states} >= set(range(13))
    plan = [one for group in _tiers_plan.GROUPS for one in group.experiments]
    assert len(states) == len(notes["experiments"]) == len(plan)
    for experiment in plan:
        seen = states[experiment.number, experiment.name]
        if experiment.real:
            assert (seen["state"], bool(seen["reason"])) == ("not run", True), seen
        else:
            assert seen["state"] in ("measured", "in part"), seen
    assert notes["times"] == "of the model"
    assert {name for name, ended in notes["groups"].items() if ended[0]["exit"] == 0} == {
        *("core", "batch", "host")
    }
    assert all("pages of" in piece for piece in notes["pools"]["core"]["pages"])
    for times in notes["cells"].values():
        assert times.keys() == {"submitted_us", "device_us", "wall_us"}
        assert all(least <= middle <= most for least, middle, most in times.values())


def test_the_dry_run_claims_only_what_python_does(dry_run: dict[str, Any]) -> None:
    result = dry_run["result"]
    assert {claim["name"] for claim in result["claims"]} == {
        "stream/submit-10000",
        "stream/choice",
    }
    assert {one["name"] for one in result["skipped"]} == {
        name
        for name in bench.CLAIMS
        if _tiers_claims.is_ours(name) and name not in ("stream/submit-10000", "stream/choice")
    }
    assert all("simulated" in one["reason"] for one in result["skipped"])


def test_the_plot_shows_lines_of_every_tier_that_was_measured(dry_run: dict[str, Any]) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="missing-package: pillow")
    with image_module.open(dry_run["plot"]) as image:
        assert image.size == (_tiers_picture.WIDTH, _tiers_picture.HEIGHT)
        seen = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    rows = [row["case"] for row in dry_run["result"]["rows"] if row["ours"] is not None]
    for tier, colour in _tiers_picture.COLOURS.items():
        there = any(case.startswith(f"{tier}, ") and "KiB h2d" in case for case in rows)
        number = tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
        assert (number in seen) == there, tier


def test_one_experiment_that_fails_is_noted_and_the_rest_goes_on(sheet: Sheet) -> None:
    def fails(sheet: Sheet, box: Box) -> None:
        raise CopyError("half way")

    def not_here(sheet: Sheet, box: Box) -> None:
        raise NotHereError("there is no such thing")

    def works(sheet: Sheet, box: Box) -> None:
        sheet.row("it", "x", [1.0])

    def leaves_out(sheet: Sheet, box: Box) -> None:
        sheet.absent("that", "x", "no room")

    runs = (fails, not_here, works, leaves_out)
    perform(sheet, [Experiment(at, run.__name__, 1, run) for at, run in enumerate(runs)], 100)
    seen = sheet.measured.notes["experiments"]
    assert [one["state"] for one in seen] == ["failed", "not run", "measured", "in part"]
    assert "CopyError: half way" in seen[0]["reason"]
    assert "fails" in seen[0]["trace"]
    assert seen[3]["left_out"] == ["that: no room"]
    assert [row["case"] for row in sheet.measured.rows] == [
        *("0 fails: failed", "1 not_here: not run", "it", "that: not run")
    ]


def test_what_does_not_fit_into_the_time_is_not_begun(sheet: Sheet) -> None:
    begun: list[str] = []
    perform(sheet, [Experiment(0, "late", 1, lambda sheet, box: begun.append("late"))], 0.0)
    assert begun == []
    assert "time" in sheet.measured.notes["experiments"][0]["reason"]


def test_a_box_is_over_when_its_time_is() -> None:
    assert Box(0).over
    assert not Box(1000).over


@pytest.mark.parametrize("direction", ["h2d", "d2h"])
@pytest.mark.parametrize("spread", ["scattered", "extent"])
def test_a_cell_is_the_same_copies_each_time_and_none_writes_twice(
    sheet: Sheet, direction: Any, spread: Any
) -> None:
    bed = sheet.bed
    cell = whole(direction, block_bytes=4 * KIB, total_bytes=MIB, spread=spread, run=4)
    one, other = bed.copies(cell), bed.copies(cell)
    assert np.array_equal(one.sources, other.sources)
    assert np.array_equal(one.destinations, other.destinations)
    assert bed.device.registry.check(one) == direction
    assert (one.count, one.bytes) == (256, MIB)
    assert one.merged().count <= 256 // 4
    assert (one.extent(direction) is not None) == (spread == "extent")


@pytest.mark.parametrize("direction", ["h2d", "d2h"])
@pytest.mark.parametrize("tier", ["single", "batch", "kernel"])
def test_what_a_tier_did_is_compared_byte_by_byte(sheet: Sheet, direction: Any, tier: Any) -> None:
    bed = sheet.bed
    cell = whole(direction, block_bytes=18 * KIB, total_bytes=MIB)
    lane = bed.device.lane()
    bed.prove(lane, tier, cell, bed.copies(cell))
    shorter = Cell(direction, block_bytes=18 * KIB, count=cell.count - 1)
    with pytest.raises(AssertionError, match="is not what was copied"):
        bed.prove(lane, tier, cell, bed.copies(shorter))
    lane.close()


def test_a_byte_that_differs_is_found_in_whichever_block_it_is(sheet: Sheet) -> None:
    bed = sheet.bed
    cell = whole("h2d", block_bytes=4 * KIB, total_bytes=MIB, spread="extent")
    near, far = bed._indices(cell)
    with viewed(bed.source) as source, viewed(bed.check) as check:
        blocks = check.reshape(-1, 4 * KIB)
        blocks[far] = source.reshape(-1, 4 * KIB)[near]
        blocks[far[77], 4095] ^= 1
        del blocks
    wrong = bed._differs(bed.source, near, bed.check, far, cell)
    assert wrong is not None
    assert wrong.startswith("block 77 is not what was copied: from its byte 4095 on")


@pytest.mark.parametrize("tier", ["single", "batch", "kernel", "staged", "bar"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_tier_that_copies_nothing_is_caught_whichever_was_proved_before_it(
    sheet: Sheet, monkeypatch: pytest.MonkeyPatch, direction: Any, tier: Any
) -> None:
    bed = sheet.bed
    spread: Any = "extent" if tier == "staged" else "scattered"
    cell = whole(direction, block_bytes=4 * KIB, total_bytes=MIB, spread=spread)
    with _tiers_blocks.lanes(bed, 1) as (lane,):
        for name in ("single", tier):
            bed.prove(lane, name, cell, bed.copies(cell))
        monkeypatch.setattr(lane, "execute", lambda *_: None)
        with pytest.raises(AssertionError, match="block 0 is not what was copied"):
            bed.prove(lane, tier, cell, bed.copies(cell))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_block_that_nobody_asked_for_is_found(
    sheet: Sheet, monkeypatch: pytest.MonkeyPatch, direction: Any
) -> None:
    bed = sheet.bed
    cell = Cell(direction, block_bytes=4 * KIB, count=4)
    near, far = bed._indices(cell)
    to, out = (bed.memory, bed.source) if direction == "h2d" else (bed.landing, bed.memory)
    beside = _tiers_bed._beside(far if direction == "h2d" else near, to.length >> 12, 4096)
    extra = Copies.one(to.address + int(beside[0]) * 4096, out.address, 4096)
    with _tiers_blocks.lanes(bed, 1) as (lane,):
        bed.prove(lane, "batch", cell, bed.copies(cell))
        execute = lane.execute

        def more(tier: Any, way: Any, copies: Copies) -> None:
            execute(tier, way, copies)
            execute(tier, way, extra)

        monkeypatch.setattr(lane, "execute", more)
        with pytest.raises(AssertionError, match="not to write"):
            bed.prove(lane, "batch", cell, bed.copies(cell))


@pytest.mark.parametrize("spread", ["scattered", "extent"])
def test_each_turn_of_a_cell_takes_other_blocks_of_the_host(sheet: Sheet, spread: Any) -> None:
    cell = whole("h2d", block_bytes=4 * KIB, total_bytes=MIB, spread=spread)
    first, second = (set(sheet.bed._indices(cell, turn)[0].tolist()) for turn in (0, 1))
    assert len(first | second) == 2 * cell.count
    assert set(sheet.bed._indices(cell, 2)[0].tolist()) == first


def test_a_timed_call_pays_for_what_its_copies_work_out(
    sheet: Sheet, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = sheet.bed
    seen: list[Copies] = []
    with _tiers_blocks.lanes(bed, 1) as (lane,):
        execute = lane.execute

        def noted(tier: Any, way: Any, copies: Copies) -> None:
            assert copies._merged is copies._sources is None
            seen.append(copies)
            execute(tier, way, copies)

        cell = whole("h2d", block_bytes=4 * KIB, total_bytes=MIB)
        monkeypatch.setattr(lane, "execute", noted)
        took = bed.sampled(lane, "batch", cell, times=2)
    assert len(seen) == 1 + 2 * len(took) == len({id(one) for one in seen})
    assert all(one.wall >= one.submitted > 0 for one in took)
    assert Took(4.0, 2.0, 6.0, 8.0).over(2) == (2.0, 1.0, 3.0, 4.0)


def test_a_pool_that_is_refused_is_tried_with_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def pool(plane: Any, device: Any, length: int, **settings: Any) -> HostPool:
        asked.append(length)
        if length > 20 * MIB:
            raise NoMemoryError("it grows as it is used")
        return HostPool(plane, device, length, **settings)

    monkeypatch.setattr(_tiers_bed, "HostPool", pool)
    monkeypatch.setattr(_tiers_bed, "POOL_BYTES_MIN", 4 * MIB)
    effort = dataclasses.replace(SMALL, pool_bytes=32 * MIB)
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(EmbeddedPlane("of a test"))
        device = stack.enter_context(stream.open_device("sim"))
        assert Bed(stack, plane, device, effort).effort.pool_bytes == 8 * MIB
    assert asked == [65 * MIB, 33 * MIB, 17 * MIB]
    monkeypatch.setattr(_tiers_bed, "POOL_BYTES_MIN", 16 * MIB)
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(EmbeddedPlane("of a test"))
        device = stack.enter_context(stream.open_device("sim"))
        with pytest.raises(NoMemoryError):
            Bed(stack, plane, device, effort)


def test_threads_that_copy_at_once_tell_who_waits_what_went_wrong() -> None:
    parts: list[Any] = [
        ("batch", whole(direction, block_bytes=4 * KIB, total_bytes=MIB))
        for direction in DIRECTIONS
    ]
    with sheet_of() as sheet, _tiers_blocks.lanes(sheet.bed, 2) as queues:
        assert _tiers_blocks.together(sheet.bed, queues, parts, times=2) > 0
    faults = stream.sim.Faults(refuse=frozenset({1}))
    with sheet_of(faults=faults) as sheet, _tiers_blocks.lanes(sheet.bed, 2) as queues:
        with pytest.raises(CopyError, match="refused"):
            _tiers_blocks.together(sheet.bed, queues, parts)


def test_a_cell_that_goes_wrong_is_of_no_other(sheet: Sheet) -> None:
    kept: list[str] = []
    sheet.keep = lambda: kept.append(sheet.case)
    for case, error in (("one", AssertionError("a byte")), ("two", RuntimeError("oh"))):
        with sheet.cell(case, "x"):
            raise error
    with sheet.cell("three", "x"):
        sheet.row("three", "x", [1.0])
    assert sheet.left_out[0] == "one: AssertionError: a byte"
    assert re.fullmatch(r"two: RuntimeError: oh \(test_tiers_bench.py:\d+\)", sheet.left_out[1])
    assert [row["case"] for row in sheet.measured.rows] == ["one: not run", "two: not run", "three"]
    assert kept == ["one", "", "two", "", "three", ""]
    for fatal in (DeviceLostError("sim", "gone"), TimedOutError("never")):
        with pytest.raises(type(fatal)), sheet.cell("four", "x"):
            raise fatal
        assert sheet.case == "four"


def test_cells_that_another_process_began_are_not_begun_again(sheet: Sheet) -> None:
    sheet.resumed = Resumed(done=["kernel, 1"], blamed=["bulk"])
    cases = ("kernel, 1", "kernel, 2", "bulk, 1")
    assert [sheet.wanted(case, "x", Box(100)) for case in cases] == [False, True, False]
    assert not sheet.wanted("batch, 1", "x", Box(0))
    assert not sheet.wanted("batch, 2", "x", Box(100), "it takes no such blocks")
    assert sheet.left_out == [
        "bulk, 1: processes died in cells of 'bulk' before it",
        "batch, 1: its time was used up",
        "batch, 2: it takes no such blocks",
    ]


def test_findings_that_went_by_way_of_json_are_the_same(sheet: Sheet) -> None:
    cell = whole("d2h", block_bytes=4 * KIB, total_bytes=MIB, spread="extent", run=2)
    sheet.cells["staged", cell] = 0.5
    sheet.latencies["kernel", cell] = 7.0
    sheet.ceilings["read"] = 50.0
    sheet.row("it", "x", [1.0])
    told = json.loads(json.dumps(sheet.told()))
    found = Findings(
        measured=_result.Measured("embedded"), device="auto", modelled=True, total_bytes=MIB
    )
    for _ in range(2):
        found.absorb(told)
    assert (found.device, found.cells, found.latencies) == ("sim", sheet.cells, sheet.latencies)
    assert (found.ceilings, found.reasons) == (sheet.ceilings, sheet.reasons)
    assert [row["case"] for row in found.measured.rows] == ["it"]


def test_a_result_is_written_in_one_step_and_names_its_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DMAPLANE_COMMIT", "abc1234")
    assert _result.commit() == "abc1234"
    out = tmp_path / "out.json"
    for number in (1, 2):
        result: Any = {"bench": "x", "number": number}
        _result.save(out, result)
        assert json.loads(out.read_text()) == result
    assert list(tmp_path.iterdir()) == [out]


def test_a_tier_that_fails_fails_the_cell() -> None:
    with sheet_of(faults=stream.sim.Faults(fail=frozenset({2}))) as sheet:
        cell = whole("h2d", block_bytes=4 * KIB, total_bytes=MIB)
        lane = sheet.bed.device.lane()
        with pytest.raises(CopyError):
            sheet.bed.sampled(lane, "kernel", cell)
        lane.close()


def test_goals_are_judged_by_the_link_that_was_measured(sheet: Sheet) -> None:
    sheet.modelled = False
    sheet.ceilings |= {"read": 50.0, "write": 50.0, "engine h2d": 55.0}
    up = whole("h2d", block_bytes=4 * KIB, total_bytes=MIB)
    sheet.cells["kernel", up] = MIB / 44e9
    staged = whole("h2d", block_bytes=4 * KIB, total_bytes=MIB, spread="extent")
    sheet.cells["staged", staged] = MIB / 54e9
    sheet.latencies["kernel", Cell("h2d", block_bytes=4 * KIB, count=1)] = 7.5
    _tiers_claims.judge(sheet)
    claims = {claim["name"]: claim for claim in sheet.measured.claims}
    assert claims["stream/kernel-4KiB-h2d"]["measured"] == pytest.approx(0.88)
    assert claims["stream/staged-4KiB-h2d"]["measured"] == pytest.approx(54 / 55)
    assert claims["stream/4KiB-h2d"]["measured"] == pytest.approx(54 / 52)
    assert claims["stream/4KiB-h2d"]["holds"]
    assert not claims["stream/kernel-1x4KiB-us"]["holds"]
    skipped = {one["name"]: one["reason"] for one in sheet.measured.skipped}
    assert claims.keys() | skipped.keys() == set(filter(_tiers_claims.is_ours, bench.CLAIMS))
    assert not claims.keys() & skipped.keys()
    assert "ceiling" in skipped["stream/staged-4KiB-d2h"]


def test_a_goal_of_a_tier_that_is_not_there_is_skipped_with_its_reason() -> None:
    with sheet_of(unavailable={"bar": "no mapping on this driver"}) as sheet:
        sheet.modelled = False
        _tiers_claims.judge(sheet)
        skipped = {one["name"]: one["reason"] for one in sheet.measured.skipped}
    assert "no mapping on this driver" in skipped["stream/bar-1x4KiB-us"]


def test_every_goal_is_a_claim_that_is_known() -> None:
    named = {goal.claim for goal in _tiers_claims.GOALS}
    named |= {claim for claim, _, _ in _tiers_claims.LATENCIES}
    assert named <= bench.CLAIMS.keys()
    assert len({goal.claim for goal in _tiers_claims.GOALS}) == len(_tiers_claims.GOALS)


def config_space(control: int, status: int, second: int) -> bytes:
    """A configuration space whose second capability is PCI Express."""
    space = bytearray(256)
    space[0x34] = 0x40
    space[0x40:0x42] = bytes((0x01, 0x60))
    space[0x60:0x62] = bytes((0x10, 0x00))
    struct.pack_into("<H", space, 0x60 + 0x08, control)
    struct.pack_into("<H", space, 0x60 + 0x12, status)
    struct.pack_into("<H", space, 0x60 + 0x28, second)
    return bytes(space)


def test_the_link_is_read_out_of_the_configuration_space() -> None:
    told = _tiers_machine.express(
        config_space(1 << 5 | 5 << 12 | 1 << 8 | 1 << 4, 5 | 16 << 4, 4096)
    )
    assert told == {
        "payload_bytes_max": 256,
        "read_request_bytes_max": 4096,
        "relaxed_ordering": True,
        "extended_tag": True,
        "ten_bit_tag": True,
        "link_generation": 5,
        "link_width": 16,
    }


def test_a_configuration_space_that_is_cut_short_or_goes_round_in_circles_says_nothing() -> None:
    whole_space = config_space(0, 0, 0)
    for length in (0, 0x34, 0x40, 64, 0x61, 0x80):
        assert _tiers_machine.express(whole_space[:length]) == {}
    circle = bytearray(whole_space)
    circle[0x41] = 0x40
    assert _tiers_machine.express(bytes(circle)) == {}
    assert _tiers_machine.express(bytes(256)) == {}


def test_sizes_of_bars_are_those_of_the_list() -> None:
    lines = "0x00000000fe000000 0x00000000feffffff 0x0\n" + "0x0 0x0 0x0\n" * 5
    assert _tiers_machine._bars(lines)[:2] == [16 * MIB, 0]
    assert _tiers_machine._bars("unreadable: it") == []


def test_sizes_are_named_as_people_do() -> None:
    assert [size_text(size) for size in (64, 512, KIB, 18 * KIB, MIB, 3 * MIB // 2)] == [
        *("64 B", "512 B", "1 KiB", "18 KiB", "1 MiB", "1536 KiB")
    ]


def test_a_device_that_is_not_there_is_an_error_with_the_reason() -> None:
    with pytest.raises(InvalidError, match="device"):
        bench.run("stream-tiers", quick=True, progress=False, device="abacus")
    with pytest.raises(InvalidError, match="embedded"):
        bench.run("stream-tiers", plane="kernel", quick=True, progress=False, device="sim")
    try:
        stream.open_device("cuda").close()
    except UnsupportedError:
        with pytest.raises(UnsupportedError, match="cuda"):
            bench.run("stream-tiers", quick=True, progress=False, device="cuda")


def test_the_driver_has_every_call_that_an_experiment_makes() -> None:
    """Names alone: what they do is for a GPU to show."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError:
        pytest.skip("missing-package: cuda-bindings")
    from dmaplane.bench import _tiers_beside, _tiers_cuda

    for module in (_tiers_beside, _tiers_cuda):
        assert module.__file__ is not None
        source = Path(module.__file__).read_text()
        calls = set(re.findall(r"\bcu[A-Z]\w+", source))
        assert "cuMemFree" in calls or module is _tiers_beside
        for name in calls:
            assert hasattr(driver, name), name
    assert driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    assert driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_HOST_NUMA
    assert driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    least = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    assert least is not None
    assert driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    made = driver.CUmemAllocationProp()
    made.location.id = 1
    assert made.location.id == 1
