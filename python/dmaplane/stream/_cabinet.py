# SPDX-License-Identifier: MIT
"""The cabinet: profiles as files, `$XDG_CACHE_HOME/dmaplane/stream-<key>.json`.

What is read from there was written by anybody: length and counts are bounded, each field is
checked by its type and range, and nothing is taken over that this file does not name. What is
written is read as strictly before it is, so that what is kept can be had again. Written beside
its place and renamed, so that nobody reads half of one. Nothing is kept open or locked.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import pathlib
import stat
import tempfile
from typing import TYPE_CHECKING, Any, Final, get_args

from dmaplane._errors import InvalidError, SystemCallError
from dmaplane.stream._copies import Direction
from dmaplane.stream._curve import Row
from dmaplane.stream._device import Tier, TierName

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT: Final = "dmaplane stream profile"
VERSION: Final = 1
FILE_BYTES_MAX: Final = 1 << 20
TEXT_MAX: Final = 1024
TIERS_MAX: Final = 16
ROWS_MAX: Final = 1024
POINTS_MAX: Final = 32
_WHOLE_MAX: Final = 1 << 53
_NUMBER_MAX: Final = 1e300


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """What a file holds: rows of every tier in every direction, and of what they were measured."""

    identity: str
    """Of the device: Device.identity."""
    device: str
    """Its name."""
    tiers: tuple[Tier, ...]
    """As they were, those that are not there too."""
    failed: tuple[tuple[TierName, str], ...]
    """Tiers that failed while they were measured, and why: they are not chosen."""
    rows: tuple[Row, ...]
    made: float
    """When, in seconds since 1970."""
    seconds: float
    """How long measuring took."""
    samples: int


FIELDS: Final = tuple(field.name for field in dataclasses.fields(Kept))


def folder() -> pathlib.Path:
    """The user's cache folder for us; it may not exist. SystemCallError: there can be none."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if named.startswith("/"):
        return pathlib.Path(named) / "dmaplane"
    try:
        return pathlib.Path.home() / ".cache" / "dmaplane"
    except RuntimeError as homeless:  # no HOME, and a user nobody knows
        raise SystemCallError(
            "finding the cache folder (XDG_CACHE_HOME names one)", errno.ENOENT
        ) from homeless


def path_of(identity: str, tiers: Iterable[str]) -> pathlib.Path:
    """Where the profile of this device with these tiers is, or would be."""
    key = hashlib.sha256("\n".join([identity, *tiers]).encode()).hexdigest()[:24]
    return folder() / f"stream-{key}.json"


def write(path: pathlib.Path, kept: Kept) -> None:
    """Writes it; whoever reads meanwhile reads the old one or the new one.

    InvalidError, and nothing is written, if it could not be read again.
    """
    kept = dataclasses.replace(
        kept,
        tiers=tuple(
            dataclasses.replace(tier, reason=tier.reason[:TEXT_MAX]) for tier in kept.tiers
        ),
        failed=tuple((name, why[:TEXT_MAX]) for name, why in kept.failed),
    )
    fields = dataclasses.asdict(kept)  # of a Profile, more than is kept
    chosen = {name: fields[name] for name in FIELDS}
    text = json.dumps({"format": FORMAT, "version": VERSION, **chosen})
    if len(text) > FILE_BYTES_MAX:  # of ASCII, as json writes it
        raise InvalidError("profile", f"{len(text)} bytes", fix=f"at most {FILE_BYTES_MAX}")
    _kept(_Reader("a profile of fewer rows and points"), json.loads(text))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, beside = tempfile.mkstemp(prefix=".stream-", dir=path.parent)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise SystemCallError(f"writing {path}", error.errno or 0) from error


def read(path: pathlib.Path) -> Kept | None:
    """What is kept there; None if nothing is, or something of another version.

    InvalidError names the field that is wrong; SystemCallError if it cannot be read.
    """
    fix = f"measure again with --refresh, or delete {path}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SystemCallError(f"reading {path}", error.errno or 0) from error
    try:
        plain = stat.S_ISREG(os.fstat(fd).st_mode)
        raw = _all_of(fd) if plain else b""
    except OSError as error:
        raise SystemCallError(f"reading {path}", error.errno or 0) from error
    finally:
        os.close(fd)
    if not plain:
        raise InvalidError("profile", "not a plain file", fix=fix)
    if len(raw) > FILE_BYTES_MAX:
        raise InvalidError("profile", f"more than {FILE_BYTES_MAX} bytes", fix=fix)
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidError("profile", f"no JSON: {error}", fix=fix) from None
    reader = _Reader(fix)
    top = reader.table("profile", given)
    if reader.text("format", top.get("format")) != FORMAT:
        raise InvalidError("format", "of something else", fix=fix)
    if reader.whole("version", top.get("version"), 1) != VERSION:
        return None
    return _kept(reader, top)


def _all_of(fd: int) -> bytes:
    """What is in that file, up to one byte more than is allowed."""
    raw = b""
    while len(raw) <= FILE_BYTES_MAX:
        more = os.read(fd, FILE_BYTES_MAX + 1 - len(raw))
        if not more:
            break
        raw += more
    return raw


class _Reader:
    """Fields of a type and range each; InvalidError names the one that is not."""

    def __init__(self, fix: str) -> None:
        self.fix = fix

    def wrong(self, field: str, problem: str) -> InvalidError:
        return InvalidError(field, problem, fix=self.fix)

    def table(self, field: str, given: Any) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise self.wrong(field, "no object")
        return given

    def items(self, field: str, given: Any, most: int) -> list[Any]:
        if not isinstance(given, list) or len(given) > most:
            raise self.wrong(field, f"no list of at most {most}")
        return given

    def text(self, field: str, given: Any) -> str:
        if not isinstance(given, str) or len(given) > TEXT_MAX:
            raise self.wrong(field, f"no text of at most {TEXT_MAX}")
        return given

    def whole(self, field: str, given: Any, least: int) -> int:
        if type(given) is not int or not least <= given <= _WHOLE_MAX:
            raise self.wrong(field, f"no number {least} .. {_WHOLE_MAX}")
        return given

    def number(self, field: str, given: Any, *, least: float, most: float) -> float:
        # By comparing: a whole number of hundreds of digits is no float at all.
        if type(given) not in (int, float) or not -_NUMBER_MAX < given < _NUMBER_MAX:
            raise self.wrong(field, "no number")
        if not least <= given <= most:
            raise self.wrong(field, f"{given} is not {least} .. {most}")
        return float(given)

    def flag(self, field: str, given: Any) -> bool:
        if not isinstance(given, bool):
            raise self.wrong(field, "neither true nor false")
        return given

    def tier(self, field: str, given: Any) -> TierName:
        for name in get_args(TierName):
            if given == name:
                return name  # type: ignore[no-any-return]
        raise self.wrong(field, "no tier")

    def direction(self, field: str, given: Any) -> Direction:
        for name in get_args(Direction):
            if given == name:
                return name  # type: ignore[no-any-return]
        raise self.wrong(field, "no direction")


def _kept(reader: _Reader, top: dict[str, Any]) -> Kept:
    failed: list[tuple[TierName, str]] = []
    for at, pair in enumerate(reader.items("failed", top.get("failed"), TIERS_MAX)):
        name, why = (*reader.items(f"failed[{at}]", pair, 2), None, None)[:2]
        failed.append((reader.tier(f"failed[{at}]", name), reader.text(f"failed[{at}]", why)))
    rows = tuple(
        _row(reader, f"rows[{at}]", one)
        for at, one in enumerate(reader.items("rows", top.get("rows"), ROWS_MAX))
    )
    seen: set[tuple[TierName, Direction, int]] = set()
    for at, row in enumerate(rows):
        key = row.tier, row.direction, row.block_bytes
        if key in seen:
            raise reader.wrong(f"rows[{at}]", f"the second one of {row.tier}, {row.block_bytes}")
        seen.add(key)
    return Kept(
        identity=reader.text("identity", top.get("identity")),
        device=reader.text("device", top.get("device")),
        tiers=tuple(
            _tier(reader, f"tiers[{at}]", one)
            for at, one in enumerate(reader.items("tiers", top.get("tiers"), TIERS_MAX))
        ),
        failed=tuple(failed),
        rows=rows,
        made=reader.number("made", top.get("made"), least=0.0, most=1e12),
        seconds=reader.number("seconds", top.get("seconds"), least=0.0, most=1e6),
        samples=reader.whole("samples", top.get("samples"), 0),
    )


def _tier(reader: _Reader, field: str, given: Any) -> Tier:
    one = reader.table(field, given)
    directions = reader.items(f"{field}.directions", one.get("directions"), 2)
    return Tier(
        name=reader.tier(f"{field}.name", one.get("name")),
        available=reader.flag(f"{field}.available", one.get("available")),
        reason=reader.text(f"{field}.reason", one.get("reason")),
        directions=tuple(reader.direction(f"{field}.directions", way) for way in directions),
        needs_extent=reader.flag(f"{field}.needs_extent", one.get("needs_extent")),
        busy_penalty=reader.number(
            f"{field}.busy_penalty", one.get("busy_penalty"), least=0.0, most=1e6
        ),
        smallest=reader.whole(f"{field}.smallest", one.get("smallest"), 0),
        largest=reader.whole(f"{field}.largest", one.get("largest"), 1),
        merges=reader.flag(f"{field}.merges", one.get("merges")),
    )


def _row(reader: _Reader, field: str, given: Any) -> Row:
    one = reader.table(field, given)
    counts = tuple(
        reader.whole(f"{field}.counts", count, 1)
        for count in reader.items(f"{field}.counts", one.get("counts"), POINTS_MAX)
    )
    seconds = tuple(
        reader.number(f"{field}.seconds", value, least=1e-12, most=1e6)
        for value in reader.items(f"{field}.seconds", one.get("seconds"), POINTS_MAX)
    )
    if not counts or len(counts) != len(seconds):
        raise reader.wrong(field, f"{len(seconds)} seconds for {len(counts)} counts")
    if any(low >= high for low, high in itertools.pairwise(counts)):
        raise reader.wrong(f"{field}.counts", "they do not rise")
    return Row(
        tier=reader.tier(f"{field}.tier", one.get("tier")),
        direction=reader.direction(f"{field}.direction", one.get("direction")),
        block_bytes=reader.whole(f"{field}.block_bytes", one.get("block_bytes"), 1),
        counts=counts,
        seconds=seconds,
    )
