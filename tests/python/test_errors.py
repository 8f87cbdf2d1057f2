# SPDX-License-Identifier: MIT
"""Bad input gets an exception that names the field and the fix; one errno, one class."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import dmaplane
from dmaplane import _errors


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (dmaplane.InvalidError, ValueError),
        (dmaplane.TimedOutError, TimeoutError),
        (dmaplane.NoMemoryError, MemoryError),
        (dmaplane.NotAllowedError, PermissionError),
        (dmaplane.NotFoundError, LookupError),
        (dmaplane.WouldBlock, BlockingIOError),
        (dmaplane.SystemCallError, OSError),
    ],
)
def test_exception_is_the_standard_one_too(kind: type, also: type) -> None:
    assert issubclass(kind, also)
    assert issubclass(kind, dmaplane.DmaplaneError)


def test_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", _errors.__doc__ or ""))
    there = {
        name
        for name, value in vars(_errors).items()
        if isinstance(value, type) and issubclass(value, dmaplane.DmaplaneError)
    }
    assert drawn == there - {"DmaplaneError"}


def _errnos_of_the_contract() -> list[int]:
    header = pathlib.Path(__file__).parents[2] / "include" / "uapi" / "dmaplane.h"
    text = header.read_text().split("What an errno means")[1].split("#ifndef")[0]
    names = re.findall(r"\bE[A-Z0-9]{3,}\b", text)
    assert len(names) > 15
    return [getattr(errno, name) for name in names]


@pytest.mark.parametrize("number", _errnos_of_the_contract())
def test_every_errno_of_the_contract_has_a_readable_exception(number: int) -> None:
    made = _errors.error_from(-number, "BUFFER_CREATE", "buffer 7")
    assert made.errno == number
    assert "BUFFER_CREATE" in str(made)
    assert "buffer 7" in str(made)
    assert len(str(made)) > 30


WRONG: list[tuple[str, Callable[[dmaplane.Plane, dmaplane.Channel], object], str]] = [
    ("length_bytes", lambda p, c: p.buffer(0), "1 .. "),
    ("length_bytes", lambda p, c: p.buffer(-4), "1 .. "),
    ("length_bytes", lambda p, c: p.buffer(), "bytes wanted"),
    ("kind", lambda p, c: p.buffer(1, kind="page"), "one of pages, huge"),  # type: ignore[arg-type]
    ("kind", lambda p, c: p.buffer(1, kind="imported"), "import_buffer"),
    ("huge", lambda p, c: p.buffer(1, huge="yes"), "prefer"),  # type: ignore[arg-type]
    ("huge", lambda p, c: p.buffer(1, kind="pages", huge="prefer"), "leave kind out"),
    ("policy", lambda p, c: p.buffer(1, policy="near", node=0), "one of any"),  # type: ignore[arg-type]
    ("policy", lambda p, c: p.buffer(1, policy="prefer", nodes=[0]), "bind or interleave"),
    ("nodes", lambda p, c: p.buffer(1, nodes=[64]), "0 .. 63"),
    ("nodes", lambda p, c: p.buffer(1, nodes=[]), "at least one"),
    ("node, nodes", lambda p, c: p.buffer(1, node=0, nodes=[0]), "one node"),
    ("node", lambda p, c: p.buffer(1, policy="bind"), "node="),
    ("read_only", lambda p, c: p.buffer(1, read_only=True), "user="),
    ("user", lambda p, c: p.buffer(user=object()), "numpy"),
    ("user", lambda p, c: p.buffer(user=b"x"), "read_only=True"),
    ("user", lambda p, c: p.buffer(user=bytearray()), "at least one"),
    ("user", lambda p, c: p.buffer(user=np.zeros((4, 4))[:, 1]), "ascontiguousarray"),
    ("user", lambda p, c: p.buffer(1, kind="user"), "user="),
    ("user", lambda p, c: p.buffer(user=bytearray(8), node=0), "no node"),
    ("slots", lambda p, c: p.channel(slots=3), "power of two"),
    ("slots", lambda p, c: p.channel(slots=0), "power of two"),
    ("completion_slots", lambda p, c: p.channel(slots=8, completion_slots=4), "at least 8"),
    ("workers", lambda p, c: p.channel(workers=0), "at least 1"),
    ("spin_us", lambda p, c: p.channel(spin_us=-1), "microseconds"),
    ("cpu, node", lambda p, c: p.channel(cpu=0, node=0), "one of them"),
    ("cpu", lambda p, c: p.channel(cpu=-1), "topology"),
    ("dst", lambda p, c: c.copy(bytearray(8), p.buffer(8)), "user="),  # type: ignore[arg-type]
    ("dst, src", lambda p, c: c.copy(p.buffer(8), p.buffer(9)), "slice"),
    ("pattern", lambda p, c: c.fill(p.buffer(8), 1 << 32), "2**32"),
    ("dst", lambda p, c: c.fill(p.buffer(8)[1:5], 0), "multiples of 4"),
    ("verify", lambda p, c: c.copy(p.buffer(8), p.buffer(8), verify=-1), "2**32"),
    ("timeout", lambda p, c: c.nop(timeout=-1), "seconds"),
    ("timeout", lambda p, c: c.nop().wait(timeout=float("nan")), "seconds"),
    ("timeout", lambda p, c: p.buffer(8).destroy(timeout=1.0), "drain=True"),
    ("shape", lambda p, c: p.buffer(8).numpy((3,), np.uint32), "there are 8"),
    ("shape", lambda p, c: p.buffer(8).numpy((-1,)), "sizes"),
    ("dtype", lambda p, c: p.buffer(8).numpy(1, object), "plain"),
    ("range", lambda p, c: p.buffer(8)[4:4], "one byte"),
    ("stop", lambda p, c: p.buffer(8)[4:9], "at most 8"),
    ("step", lambda p, c: p.buffer(8)[::2], "contiguous"),
    ("index", lambda p, c: p.buffer(8)[0], "slice"),  # type: ignore[index]
    ("read, write", lambda p, c: p.buffer(8).sync(), "access"),
    ("rows", lambda p, c: c.submit(np.zeros(4)), "SUBMISSION"),
    ("user_data, everything", lambda p, c: c.cancel(), "everything=True"),
    ("wait", lambda p, c: c.completions(wait=1), "0 can still come"),
]


@pytest.mark.parametrize(
    ("field", "act", "fix"), WRONG, ids=[f"{i}-{w[0]}" for i, w in enumerate(WRONG)]
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_bad_argument_names_the_field_and_the_fix(
    plane: dmaplane.Plane,
    channel: dmaplane.Channel,
    field: str,
    act: Callable[[dmaplane.Plane, dmaplane.Channel], object],
    fix: str,
) -> None:
    with pytest.raises(dmaplane.InvalidError) as caught:
        act(plane, channel)
    assert caught.value.field == field
    assert fix in caught.value.fix
    assert str(caught.value).startswith(field)
    assert caught.value.errno is None, "Python must refuse it before it asks the plane"


def test_kernel_plane_without_its_device_says_how_to_get_it() -> None:
    if os.path.exists("/dev/dmaplane"):
        pytest.skip("this machine has the device")
    with pytest.raises(dmaplane.UnsupportedError) as caught:
        dmaplane.open(plane="kernel")
    assert "modprobe" in caught.value.needs
    assert "embedded" in caught.value.needs


def test_unknown_plane_names_those_there_are() -> None:
    with pytest.raises(dmaplane.InvalidError, match=r"auto.*embedded.*kernel"):
        dmaplane.open(plane="other")  # type: ignore[arg-type]


def test_missing_library_says_how_to_get_it() -> None:
    code = "import dmaplane\ntry: dmaplane.open()\nexcept dmaplane.UnsupportedError as e: print(e)"
    environment = {**os.environ, "DMAPLANE_LIBRARY": "/nonexistent/libdmaplane.so"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "DMAPLANE_LIBRARY" in done.stdout
    assert "/nonexistent/libdmaplane.so" in done.stdout


def test_plane_says_which_it_is_and_why(plane: dmaplane.Plane) -> None:
    assert plane.name == "embedded"
    assert plane.reason == "asked for by name"
    assert plane.path == "local"
    assert plane.version
    with dmaplane.open() as chosen:
        assert "/dev/dmaplane" in chosen.reason


def test_missing_capability_is_named(plane: dmaplane.Plane) -> None:
    with pytest.raises(dmaplane.UnsupportedError, match="COHERENT on the embedded plane"):
        plane.require(dmaplane.Capability.COHERENT)
