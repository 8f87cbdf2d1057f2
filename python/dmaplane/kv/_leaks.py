# SPDX-License-Identifier: MIT
"""Leaks: the books of a pool as text, and as JSON from one process to another.

What `dmaplane kv leaks` shows, without the command line: a server gives as_json(pool), whoever
asks reads it with Books.of_json() and shows cells_of() each row. Pure: nothing here touches a pool
but as_json().

What comes from elsewhere is bounded and checked field by field before it is believed.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final, get_args

from dmaplane._errors import InvalidError
from dmaplane.kv._blocks import Account
from dmaplane.kv._lease import TEXT_MAX, LeaseRow, LeaseState

if TYPE_CHECKING:
    from typing_extensions import Self

    from dmaplane.kv._pool import Pool

ROWS_MAX: Final = 100_000
WHO_MAX: Final = 1024
NUMBER_MAX: Final = 1 << 53
HEADINGS: Final = (
    "lease",
    "holder",
    "trace",
    "age",
    "expires",
    "blocks",
    "state",
    "held by",
    "why",
)
_UNITS: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
_STATES: Final = get_args(LeaseState)


@dataclasses.dataclass(frozen=True, slots=True)
class Books:
    """A pool's account and leases at one time."""

    account: Account
    leases: tuple[LeaseRow, ...]
    """The oldest first."""

    def leaks(self, older_than: float) -> tuple[LeaseRow, ...]:
        """Leases older than so many seconds."""
        return tuple(row for row in self.leases if row.age_seconds > older_than)

    def verdict(self, older_than: float) -> str:
        """One line: whether something leaks, and who it is."""
        leaks = self.leaks(older_than)
        if not leaks:
            return f"no lease is older than {age_text(older_than)}: {self.account}"
        worst = max(leaks, key=lambda row: row.age_seconds)
        traced = f", trace {worst.trace}" if worst.trace else ""
        waits = f", waits for {', '.join(worst.who)}" if worst.who else ""
        noun = "lease is" if len(leaks) == 1 else "leases are"
        return (
            f"{len(leaks)} {noun} older than {age_text(older_than)} and hold"
            f"{'s' if len(leaks) == 1 else ''} {sum(row.blocks for row in leaks)} of"
            f" {self.account.allocated} blocks; the oldest: {worst.holder}{traced},"
            f" {age_text(worst.age_seconds)}, {worst.state}{waits}"
        )

    @classmethod
    def of_json(cls, data: object) -> Self:
        """What as_json() gave, checked; InvalidError names what is wrong."""
        books = _fields(data, "books", ("account", "leases"))
        account = _fields(books["account"], "account", _names(Account))
        rows = books["leases"]
        if not isinstance(rows, list) or len(rows) > ROWS_MAX:
            raise InvalidError("leases", "no list of leases", fix=f"at most {ROWS_MAX}")
        made = Account(**{name: _count(account[name], name) for name in account})
        if not made.balanced:
            raise InvalidError("account", f"{made} does not balance", fix="look at that server")
        return cls(made, tuple(_row_of(row) for row in rows))


def as_json(pool: Pool) -> dict[str, Any]:
    """A pool's books, for json.dumps()."""
    account, leases = pool.books()
    return {
        "account": dataclasses.asdict(account),
        "leases": [dataclasses.asdict(row) for row in leases],
    }


def cells_of(row: LeaseRow) -> tuple[str, ...]:
    """A lease as text, in the order of HEADINGS."""
    expires = "never" if row.state == "live" else "ended"
    if row.expires_in is not None:
        late = row.expires_in < 0
        expires = f"{age_text(abs(row.expires_in))} ago" if late else age_text(row.expires_in)
    return (
        str(row.id),
        row.holder,
        row.trace,
        age_text(row.age_seconds),
        expires,
        str(row.blocks),
        row.state,
        ", ".join(row.who),
        row.why,
    )


def age_text(seconds: float) -> str:
    """Seconds for people: "8.3 s", "4.0 min", "2.5 h"."""
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _fields(data: object, what: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != set(names):
        raise InvalidError(what, "not what a server gives", fix=f"fields {', '.join(names)}")
    return data


def _count(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= NUMBER_MAX:
        raise InvalidError(name, f"{value!r:.60} is no count", fix=f"0 .. {NUMBER_MAX}")
    return value


def _seconds(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidError(name, f"{value!r:.60} is no time", fix="seconds")
    if not abs(value) <= NUMBER_MAX:  # a nan is not either
        raise InvalidError(name, f"{value!r:.60} is no time", fix=f"at most {NUMBER_MAX}")
    return float(value)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX or not value.isprintable():
        raise InvalidError(name, "no printable text", fix=f"at most {TEXT_MAX} characters")
    return value


def _row_of(data: object) -> LeaseRow:
    row = _fields(data, "lease", _names(LeaseRow))
    state, who, until = row["state"], row["who"], row["expires_in"]
    if state not in _STATES:
        raise InvalidError("state", f"{state!r:.60} is none", fix=f"one of {', '.join(_STATES)}")
    if not isinstance(who, list | tuple) or len(who) > WHO_MAX:
        raise InvalidError("who", "no list of names", fix=f"at most {WHO_MAX}")
    return LeaseRow(
        id=_count(row["id"], "id"),
        holder=_text(row["holder"], "holder"),
        trace=_text(row["trace"], "trace"),
        age_seconds=_seconds(row["age_seconds"], "age_seconds"),
        expires_in=None if until is None else _seconds(until, "expires_in"),
        blocks=_count(row["blocks"], "blocks"),
        state=state,
        who=tuple(_text(one, "who") for one in who),
        why=_text(row["why"], "why"),
    )
