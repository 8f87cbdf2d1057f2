# SPDX-License-Identifier: MIT
"""The conformance suite itself: it runs as shipped, and it catches planes that break a law."""

from __future__ import annotations

import ctypes
import errno
import io

import pytest

import dmaplane
from dmaplane import abi, testing
from dmaplane._embedded import EmbeddedPlane


def _run(name: str, make: type[EmbeddedPlane]) -> None:
    case = next(one for one in testing.cases() if str(one) == name)
    case.run(lambda: make("a test"))


class AcceptsAnyFlag(EmbeddedPlane):
    def _command(self, number: int, struct: object) -> int:
        ctypes.memset(ctypes.addressof(struct) + 4, 0, 4)  # type: ignore[arg-type]
        return super()._command(number, struct)  # type: ignore[arg-type]


class KnowsEveryCommand(EmbeddedPlane):
    def _command(self, number: int, struct: object) -> int:
        answer = super()._command(number, struct)  # type: ignore[arg-type]
        return -errno.EINVAL if answer == -errno.ENOTTY else answer


class WritesOnFailure(EmbeddedPlane):
    def _command(self, number: int, struct: object) -> int:
        answer = super()._command(number, struct)  # type: ignore[arg-type]
        if answer == -errno.EINVAL:
            ctypes.memset(ctypes.addressof(struct) + 8, 0xFF, 4)  # type: ignore[arg-type]
        return answer


class FreesWhatIsHeld(EmbeddedPlane):
    def _command(self, number: int, struct: object) -> int:
        answer = super()._command(number, struct)  # type: ignore[arg-type]
        return 0 if answer == -errno.EBUSY else answer


class CancelsNothing(EmbeddedPlane):
    def _command(self, number: int, struct: object) -> int:
        if number == abi.CANCEL:
            struct.cancelled = 4  # type: ignore[attr-defined]
            return 0
        return super()._command(number, struct)  # type: ignore[arg-type]


class LosesPages(EmbeddedPlane):
    def _command(self, number: int, struct: object) -> int:
        answer = super()._command(number, struct)  # type: ignore[arg-type]
        if number == abi.BUFFER_QUERY and answer == 0:
            struct.node_pages[0] -= 1  # type: ignore[attr-defined]
        return answer


class CountsTwice(EmbeddedPlane):
    def _command(self, number: int, struct: object) -> int:
        answer = super()._command(number, struct)  # type: ignore[arg-type]
        if number == abi.STATISTICS and answer == 0:
            struct.submissions *= 2  # type: ignore[attr-defined]
        return answer


@pytest.mark.parametrize(
    ("plane", "case"),
    [
        (AcceptsAnyFlag, "commands-unknown_flag_is_refused"),
        (KnowsEveryCommand, "commands-unknown_command_is_enotty"),
        (WritesOnFailure, "commands-unknown_flag_is_refused"),
        (FreesWhatIsHeld, "lifetimes-mapping_holds_its_buffer"),
        (FreesWhatIsHeld, "lifetimes-operation_in_flight_holds_its_buffers"),
        (CancelsNothing, "cancelling-nothing_touches_a_buffer_after_cancel"),
        (LosesPages, "placement-every_page_is_counted"),
        (CountsTwice, "observation-counters_count_exactly"),
    ],
)
def test_suite_catches_a_broken_plane(plane: type[EmbeddedPlane], case: str) -> None:
    with pytest.raises(AssertionError):
        _run(case, plane)


class ClaimsNothing(EmbeddedPlane):
    def _command(self, number: int, struct: object) -> int:
        answer = super()._command(number, struct)  # type: ignore[arg-type]
        if number == abi.QUERY and answer == 0:
            struct.capabilities = 0  # type: ignore[attr-defined]
        return answer


def test_missing_capability_is_a_skip_with_its_name() -> None:
    with pytest.raises(testing.MissingCapability, match="PLACEMENT"):
        _run("placement-every_page_is_counted", ClaimsNothing)


def test_check_plane_reports_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = tuple(one for one in testing.cases() if one.group in ("placement", "staleness"))
    monkeypatch.setattr(testing._case, "cases", lambda **_: quick)
    out = io.StringIO()
    report = testing.check_plane(lambda: dmaplane.open(plane="embedded"), out=out)
    assert len(report.passed) + len(report.skipped) == len(quick)
    assert len(out.getvalue().splitlines()) == len(quick)


def test_every_law_this_suite_is_about_has_cases() -> None:
    laws = {one.law for one in testing.cases()}
    assert laws >= {"L1", "L2", "L3", "L4", "L5", "L6", "L7", "L11", "L12"}
