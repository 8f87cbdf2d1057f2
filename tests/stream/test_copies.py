# SPDX-License-Identifier: MIT
"""Copies and the registry against what a few lines of plain Python say of them."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from dmaplane import BusyError, InvalidError, NotFoundError
from dmaplane.stream import Copies, Hold, Registry
from dmaplane.stream._registry import Snapshot

SIZE = 256


def _triples(copies: Copies) -> list[tuple[int, int, int]]:
    return list(
        zip(
            copies.destinations.tolist(),
            copies.sources.tolist(),
            copies.lengths.tolist(),
            strict=True,
        )
    )


def _bytes(copies: Copies) -> list[tuple[int, int]]:
    """Which byte goes where, one by one."""
    return sorted(
        (to + at, out + at) for to, out, length in _triples(copies) for at in range(length)
    )


listed = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(1000, 1000 + SIZE), st.integers(1, 40)),
    min_size=1,
    max_size=20,
).map(lambda rows: Copies.many(*(np.array(column) for column in zip(*rows, strict=True))))

gridded = st.builds(
    lambda rows, strides, length: Copies.indexed(
        source=1000,
        destination=0,
        source_stride=strides[0],
        destination_stride=strides[1],
        length=length,
        source_index=np.array([row[0] for row in rows]),
        destination_index=np.array([row[1] for row in rows]),
    ),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=12),
    st.tuples(st.integers(0, 24), st.integers(0, 24)),
    st.integers(1, 16),
)

packed = st.builds(
    lambda length, to, out, far: Copies.indexed(
        source=1000,
        destination=0,
        source_stride=length,
        destination_stride=length,
        length=length,
        source_index=np.array(out) * far[0],
        destination_index=(np.array(to) * far[1])[: len(out)],
    ),
    st.integers(1, 3),
    st.permutations(range(9)),
    st.lists(st.integers(0, 9), min_size=1, max_size=9),
    st.tuples(st.sampled_from([1, 1, 500]), st.sampled_from([1, 1, 500])),
)
"""Grids without a gap between their blocks, dense or sparse: only these can be joined."""

any_copies = st.one_of(listed, gridded, packed)


@settings(max_examples=300, deadline=None)
@given(any_copies)
def test_merged_moves_each_byte_as_before_in_no_more_copies(copies: Copies) -> None:
    merged = copies.merged()
    assert _bytes(merged) == _bytes(copies)
    assert merged.bytes == copies.bytes == sum(length for _, _, length in _triples(copies))
    assert merged.count <= copies.count
    assert merged.merged() is merged
    if not copies.overlaps():
        rows = sorted(_triples(merged))
        assert not any(
            (a[0] + a[2], a[1] + a[2]) == (b[0], b[1]) for a, b in itertools.pairwise(rows)
        ), "two neighbours were left apart"


@pytest.mark.parametrize("last", [(1 << 32) - 1, 7])
@pytest.mark.parametrize("first", [0, 5])
def test_blocks_at_the_ends_of_the_numbers_are_joined_only_to_neighbours(
    first: int, last: int
) -> None:
    """Number 2**32 - 1 is no neighbour of 0, in the order given, in a table, or sorted."""
    for to in ([0, 1, 2], [9, 1, 2], [1 << 31, 3, 4], [1 << 31, 3, 5]):
        copies = Copies.indexed(
            source=0,
            destination=1 << 40,
            source_stride=16,
            destination_stride=16,
            length=16,
            source_index=[3, last, first],
            destination_index=to,
        )
        assert copies.merged() is copies


def test_neighbours_far_apart_in_a_long_call_are_joined() -> None:
    count = 5000
    order = np.random.default_rng(3).permutation(count)
    for spread in (1, 1000):  # one run of all, or pairs
        place = order + order // 2 * (spread - 1) * 2
        copies = Copies.indexed(
            source=0,
            destination=1 << 40,
            source_stride=16,
            destination_stride=16,
            length=16,
            source_index=place,
            destination_index=place,
        )
        assert copies.merged().count == (1 if spread == 1 else count // 2)
        assert copies.merged().bytes == copies.bytes
        assert (np.diff(copies.merged().destinations.astype(np.int64)) > 0).all()


def test_sources_in_order_show_neighbours_without_sorting_the_destinations() -> None:
    apart = Copies.many([96, 0, 32], [0, 16, 64], 16)
    assert apart.merged() is apart
    joined = Copies.many([96, 112, 0], [0, 16, 64], 16).merged()
    assert _triples(joined) == [(0, 64, 16), (96, 0, 32)]


@settings(max_examples=300, deadline=None)
@given(any_copies)
def test_overlaps_says_whether_a_byte_is_written_twice(copies: Copies) -> None:
    written = [to for to, _ in _bytes(copies)]
    assert copies.overlaps() == (len(set(written)) < len(written))


@settings(max_examples=300, deadline=None)
@given(any_copies)
def test_a_span_is_the_lowest_address_and_the_highest_end(copies: Copies) -> None:
    for number, side in enumerate(("destination", "source")):
        rows = [(row[number], row[number] + row[2]) for row in _triples(copies)]
        assert copies.span(side) == (min(a for a, _ in rows), max(b for _, b in rows))  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(any_copies)
def test_an_extent_is_where_the_host_side_is_one_piece(copies: Copies) -> None:
    for direction, number in (("h2d", 1), ("d2h", 0)):
        touched = sorted(row[number] + at for row in _triples(copies) for at in range(row[2]))
        whole = touched == list(range(touched[0], touched[0] + len(touched)))
        for _ in range(2):
            found = copies.extent(direction)  # type: ignore[arg-type]
            assert found == ((touched[0], len(touched)) if whole else None)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 99), min_size=1, max_size=20), st.randoms())
def test_gather_and_scatter_pack_one_after_the_other(lengths: list[int], random: Any) -> None:
    starts = [random.randrange(1000) for _ in lengths]
    packed = [sum(lengths[:turn]) for turn in range(len(lengths))]
    gathered = Copies.gather(5000, starts, lengths)
    assert _triples(gathered) == [
        (5000 + at, start, length)
        for at, start, length in zip(packed, starts, lengths, strict=True)
    ]
    scattered = Copies.scatter(starts, 5000, lengths)
    assert [(out, to, length) for to, out, length in _triples(scattered)] == _triples(gathered)


@settings(max_examples=100, deadline=None)
@given(gridded)
def test_a_grid_is_the_list_it_stands_for(copies: Copies) -> None:
    grid = copies.grid
    assert grid is not None
    assert _triples(copies) == [
        (to * grid.destination_stride, 1000 + out * grid.source_stride, grid.length)
        for to, out in zip(grid.destination_index.tolist(), grid.source_index.tolist(), strict=True)
    ]
    assert copies.length == grid.length
    assert (grid.source_index.dtype, grid.destination_index.dtype) == (np.uint32, np.uint32)


def test_the_arrays_are_our_own_and_stay_as_they_are() -> None:
    mine = np.arange(4, dtype=np.uint64)
    copies = Copies.many(mine + 100, mine, 1)
    again = Copies.many(mine, mine, mine + 1)
    mine[:] = 7
    assert again.sources.tolist() == [0, 1, 2, 3]
    for array in (copies.sources, copies.destinations, copies.lengths):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


BIG = 1 << 63


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Copies.many([], [], 1), "destinations"),
        (lambda: Copies.many([1, 2], [1], 1), "sources"),
        (lambda: Copies.many([1], [1], 0), "length"),
        (lambda: Copies.many([1, 2], [1, 2], [3, 0]), "length[1]"),
        (lambda: Copies.many([1, 2], [1, 2], [3]), "length"),
        (lambda: Copies.many([1], [1], 1 << 39), "length"),
        (lambda: Copies.many([1], [1.5], 1), "sources"),
        (lambda: Copies.many([1, -4], [1, 2], 1), "destinations[1]"),
        (lambda: Copies.many([[1]], [1], 1), "destinations"),
        (lambda: Copies.many(1, [1], 1), "destinations"),
        (lambda: Copies.many(np.array([1, BIG], dtype=np.uint64), [1, 2], 1), "destinations[1]"),
        (lambda: Copies.many([1], [BIG - 8], 9), "sources[0]"),
        (lambda: Copies.one(1, -1, 1), "sources[0]"),
        (lambda: Copies.gather(-1, [1], 1), "destination"),
        (lambda: Copies.scatter([1], BIG, 1), "source"),
        (lambda: Copies.gather(BIG - 8, [1, 2], 8), "destinations[0]"),
    ],
)
def test_what_is_no_copy_is_refused_by_its_field(make: Any, field: str) -> None:
    with pytest.raises(InvalidError) as refused:
        make()
    assert refused.value.field == field
    assert refused.value.fix


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"source": -1}, "source"),
        ({"destination": BIG}, "destination"),
        ({"source_stride": -1}, "source_stride"),
        ({"destination_stride": 1 << 39}, "destination_stride"),
        ({"length": 0}, "length"),
        ({"source_index": [0]}, "source_index"),
        ({"source_index": [0, 1 << 32]}, "source_index[1]"),
        ({"source_index": [0, -1]}, "source_index[1]"),
        ({"destination_index": [0.0, 1.0]}, "destination_index"),
        ({"source_stride": 1 << 38, "source_index": [0, 1 << 31]}, "source_index"),
    ],
)
def test_what_is_no_grid_is_refused_by_its_field(changed: dict[str, Any], field: str) -> None:
    good: dict[str, Any] = {
        "source": 0,
        "destination": 4096,
        "source_stride": 16,
        "destination_stride": 16,
        "length": 16,
        "source_index": [0, 1],
        "destination_index": [1, 0],
    }
    assert Copies.indexed(**good).count == 2
    with pytest.raises(InvalidError) as refused:
        Copies.indexed(**{**good, **changed})
    assert refused.value.field == field


# The registry.

Row = tuple[int, int, str]
rows = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 6), st.sampled_from(["host", "device"])),
    max_size=12,
)


def _filled(wanted: list[Row]) -> tuple[Registry, list]:
    """A registry of @wanted, as far as they do not overlap; those that went in."""
    registry, taken = Registry("test"), []
    for start, length, kind in wanted:
        free = all(start + length <= a or b <= start for a, b, _, _ in taken)
        if free:
            made = registry.register(start, length, kind=kind, owner=None, why_text="t")  # type: ignore[arg-type]
            taken.append((start, start + length, kind, made))
        else:
            with pytest.raises(InvalidError, match="overlaps"):
                registry.register(start, length, kind=kind, owner=None, why_text="t")  # type: ignore[arg-type]
    return registry, taken


@settings(max_examples=200, deadline=None)
@given(rows, st.integers(0, 50))
def test_an_address_resolves_to_the_range_it_is_in(wanted: list[Row], address: int) -> None:
    registry, taken = _filled(wanted)
    inside = [(made, address - a) for a, b, _, made in taken if a <= address < b]
    if inside:
        assert registry.resolve(address) == inside[0]
    else:
        with pytest.raises(NotFoundError):
            registry.resolve(address)
    assert [one.address for one in registry.ranges] == sorted(a for a, _, _, _ in taken)


@settings(max_examples=400, deadline=None)
@given(
    rows,
    st.lists(st.tuples(st.integers(0, 44), st.integers(0, 44)), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_check_allows_what_lies_in_ranges_one_way_and_overlaps_not(
    wanted: list[Row], pairs: list[tuple[int, int]], length: int
) -> None:
    registry, taken = _filled(wanted)
    copies = Copies.many([to for to, _ in pairs], [out for _, out in pairs], length)

    def kind_of(start: int) -> str:
        return next((kind for a, b, kind, _ in taken if a <= start and start + length <= b), "")

    ways = {(kind_of(out), kind_of(to)) for to, out in pairs}
    if any("" in way for way in ways):
        with pytest.raises(NotFoundError) as lost:
            registry.check(copies)
        sources = [kind_of(out) for _, out in pairs]
        side, kinds = (
            ("source", sources)
            if "" in sources
            else ("destination", [kind_of(to) for to, _ in pairs])
        )
        assert f"copy {kinds.index('')}: {side}" in str(lost.value)
    elif ways not in ({("host", "device")}, {("device", "host")}) or copies.overlaps():
        with pytest.raises(InvalidError):
            registry.check(copies)
    else:
        assert registry.check(copies) == ("h2d" if ways == {("host", "device")} else "d2h")


@settings(max_examples=100, deadline=None)
@given(rows, st.data())
def test_a_held_range_is_released_only_after_its_holds(wanted: list[Row], data: Any) -> None:
    registry, taken = _filled(wanted)
    hosts = [made for _, _, kind, made in taken if kind == "host"]
    devices = [made for _, _, kind, made in taken if kind == "device"]
    if not hosts or not devices:
        return
    holds = []
    for _ in range(data.draw(st.integers(1, 4))):
        host, there = data.draw(st.sampled_from(hosts)), data.draw(st.sampled_from(devices))
        holds.append((registry.hold(Copies.one(there.address, host.address, 1)), host, there))
    while holds:
        for made in (*hosts, *devices):
            count = sum(made in (host, there) for _, host, there in holds)
            assert registry.uses(made) == count
            assert registry.touches(made.address, 1) == (count > 0)
            if count:
                with pytest.raises(BusyError):
                    registry.release(made)
        hold, _, _ = holds.pop(data.draw(st.integers(0, len(holds) - 1)))
        hold.release()
        hold.release()
    for made in (*hosts, *devices):
        registry.release(made)
        with pytest.raises(NotFoundError):
            registry.release(made)


def test_an_address_outside_is_told_with_the_nearest_range() -> None:
    registry = Registry("sim")
    with pytest.raises(NotFoundError, match="nothing is registered"):
        registry.resolve(16)
    registry.register(0x1000, 0x1000, kind="host", owner=None, why_text="my pool")
    registry.register(0x9000, 0x1000, kind="device", owner=None, why_text="memory()")
    with pytest.raises(NotFoundError, match=r"nearest is host 0x1000\.\.0x2000 \(my pool\)"):
        registry.resolve(0x2000)
    with pytest.raises(NotFoundError, match="nearest is device 0x9000"):
        registry.check(Copies.one(0x9000, 0x8000, 8))
    with pytest.raises(NotFoundError):
        registry.resolve(-1)


touching = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def _registry(host: list[int], device: list[int]) -> Registry:
    """Ranges of those lengths, each beginning where the one before it ends."""
    registry = Registry("test")
    for kind, start, lengths in (("host", 1000, host), ("device", 5000, device)):
        for length in lengths:
            registry.register(start, length, kind=kind, owner=None, why_text="a test")  # type: ignore[arg-type]
            start += length
    return registry


@given(host=touching, device=touching, steps=st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_what_is_cut_is_in_one_range_a_side_and_brings_the_same_bytes(
    host: list[int], device: list[int], steps: list[int]
) -> None:
    registry = _registry(host, device)
    room = min(sum(host), sum(device))
    edges = sorted({0, room, *(edge for edge in itertools.accumulate(steps) if edge < room)})
    edges = sorted({*edges, *_ends(host, room), *_ends(device, room)})
    starts = np.array(edges[:-1])
    copies = Copies.many(5000 + starts, 1000 + starts, np.diff(edges))
    registry.check(copies)
    merged = copies.merged()
    assert merged.count == 1
    found = registry.cut(merged)
    assert _bytes(found) == _bytes(copies)
    registry.check(found)  # each lies inside one range a side
    assert found.count == len({*_ends(host, room), *_ends(device, room), room})
    assert registry.cut(found) is found


def _ends(lengths: list[int], room: int) -> list[int]:
    return [end for end in itertools.accumulate(lengths) if end < room]


@given(copies=listed, address=st.integers(0, 2000), length=st.integers(1, 80))
def test_a_call_touches_its_bytes_and_no_others(copies: Copies, address: int, length: int) -> None:
    registry = Registry("test")
    hold = Hold(registry, "h2d", (), copies)
    touched = {byte for pair in _bytes(copies) for byte in pair}
    assert hold.touches(address, address + length) == any(
        byte in touched for byte in range(address, address + length)
    )


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 19)), max_size=60))
def test_ranges_that_come_and_go_are_found_where_they_are(
    steps: list[tuple[bool, int]],
) -> None:
    registry = Registry("test")
    there: dict[int, Any] = {}
    for add, place in steps:
        if add and place not in there:
            there[place] = registry.register(
                place * 10, 10, kind="host", owner=None, why_text="a test"
            )
        elif not add and place in there:
            registry.release(there.pop(place))
        assert registry.ranges == tuple(there[key] for key in sorted(there))
        for key in range(20):
            if key in there:
                assert registry.resolve(key * 10 + 9) == (there[key], 9)
            else:
                with pytest.raises(NotFoundError):
                    registry.resolve(key * 10 + 9)


@pytest.mark.parametrize("verb", ["with_one", "without"])
def test_a_signal_while_ranges_change_leaves_a_registry_that_works(
    monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    registry = _registry([64], [64])
    copies = Copies.one(5000, 1000, 64)
    given = registry.ranges[0]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, verb, interrupt)
        use = (
            (lambda: registry.release(given))
            if verb == "without"
            else lambda: registry.register(9000, 64, kind="host", owner=None, why_text="a test")
        )
        with pytest.raises(KeyboardInterrupt):
            use()
    hold = registry.hold(copies)
    assert registry.uses(given) == 1
    with pytest.raises(BusyError):
        registry.release(given)
    hold.release()
    hold.release()
    assert registry.ended == 1
    registry.release(given)
    with pytest.raises(NotFoundError):
        registry.hold(copies)


def test_a_signal_while_a_hold_is_taken_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = _registry([64], [64])

    class Interrupted(set):  # type: ignore[type-arg]
        def add(self, one: object) -> None:
            super().add(one)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_holds", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            registry.hold(Copies.one(5000, 1000, 64))
    for one in registry.ranges:
        registry.release(one)
