# SPDX-License-Identifier: MIT
"""What goes wrong with endpoints is said with the name of what is wrong and what would help."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dmaplane

SOON = 20.0


def test_nobody_listens(link: Any) -> None:
    address = link.listener.address
    link.listener.close()
    with pytest.raises(dmaplane.UnreachableError, match="start the listener") as caught:
        link.near_plane.connect(address, timeout=5)
    assert address in str(caught.value)
    assert isinstance(caught.value, ConnectionError)


def test_address_that_is_taken(link: Any) -> None:
    with pytest.raises(dmaplane.AddressInUseError, match="0 for a free one"):
        link.near_plane.listen(link.listener.address)


def test_secret_must_match_and_is_never_shown(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane, path: Any
) -> None:
    secret = "only-we-two-know"
    with far_plane.listen(secret=secret, require=path) as listener:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            accepting = pool.submit(listener.accept, timeout=SOON)
            for wrong in (None, "another-secret", secret[:-1]):
                with pytest.raises(dmaplane.NotAllowedError, match="secret") as caught:
                    plane.connect(listener.address, secret=wrong, timeout=SOON)
                shown = str(caught.value) + repr(caught.value) + repr(listener)
                assert secret not in shown
                assert wrong is None or wrong not in shown
            with plane.connect(listener.address, secret=secret.encode()) as near:
                with accepting.result(SOON) as far:
                    assert near.epoch == far.epoch


def test_required_path_that_is_not_there_names_the_broken_link(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane
) -> None:
    with far_plane.listen(require="tcp") as listener:
        with pytest.raises(dmaplane.UnsupportedError, match='require="shm"') as caught:
            plane.connect(listener.address, require="shm", timeout=5)
        assert "tcp only" in caught.value.needs
    with pytest.raises(dmaplane.UnsupportedError) as caught:
        plane.connect("192.0.2.1:7471", secret="x", require="shm", timeout=5)
    assert "no address of it" in caught.value.needs


def test_secret_is_mandatory_beyond_loopback(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane
) -> None:
    with pytest.raises(dmaplane.NotAllowedError, match="secret is mandatory"):
        plane.connect("192.0.2.1:7471", timeout=5)
    with pytest.raises(dmaplane.NotAllowedError, match="secret is mandatory"):
        plane.listen("0.0.0.0:0")


def test_accept_gives_up_in_time(link: Any) -> None:
    with pytest.raises(dmaplane.TimedOutError, match=link.listener.address):
        link.listener.accept(timeout=0.05)
    with pytest.raises(dmaplane.TimedOutError):
        link.listener.accept(timeout=0)
    near, far = link.again()
    near.close()
    far.close()


def test_close_of_a_listener_ends_accept(link: Any) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(link.listener.accept)
        time.sleep(0.05)
        link.listener.close()
        with pytest.raises(dmaplane.ClosedError):
            accepting.result(SOON)
    link.listener.close()
    assert link.near.ledger().state == "live", "what it accepted stays"


WRONG: list[tuple[str, Callable[[Any, Any], object], str]] = [
    ("address", lambda one, r: one.near_plane.connect("localhost"), "host:port"),
    ("address", lambda one, r: one.near_plane.connect(""), "1 .. 127"),
    ("address", lambda one, r: one.near_plane.connect("x" * 200 + ":1"), "1 .. 127"),
    ("address", lambda one, r: one.near_plane.listen(7471), "10.0.0.2:7471"),  # type: ignore[arg-type]
    ("secret", lambda one, r: one.near_plane.connect("127.0.0.1:1", secret=b"x" * 65), "64"),
    ("secret", lambda one, r: one.near_plane.connect("127.0.0.1:1", secret=""), "None"),
    ("require", lambda one, r: one.near_plane.connect("127.0.0.1:1", require="udp"), "tcp"),  # type: ignore[arg-type]
    ("window", lambda one, r: one.near_plane.connect("127.0.0.1:1", window=0), "1 .. "),
    ("window_bytes", lambda one, r: one.near_plane.connect("127.0.0.1:1", window_bytes=0), "1"),
    ("detect", lambda one, r: one.near_plane.connect("127.0.0.1:1", detect=0), "seconds"),
    ("timeout", lambda one, r: one.near_plane.connect("127.0.0.1:1", timeout=-1), "seconds"),
    ("backlog", lambda one, r: one.near_plane.listen(backlog=0), "65535"),
    ("channel", lambda one, r: one.near_plane.listen(channel=one.far.channel), "plane.channel()"),
    ("access", lambda one, r: one.near_plane.region(one.near_plane.buffer(8), "all"), "rw"),  # type: ignore[arg-type]
    ("source", lambda one, r: one.near_plane.region(b"x"), "plane.buffer()"),  # type: ignore[arg-type]
    ("key", lambda one, r: one.near.region(b""), "Region.key"),
    ("key", lambda one, r: one.near.region(b"x" * 65), "1 .. 64"),
    ("key", lambda one, r: one.near.region("key"), "bytes"),  # type: ignore[arg-type]
    ("imm", lambda one, r: one.near.write_imm(one.near_plane.buffer(64), r, 1 << 32), "2**32"),
    ("src, remote", lambda one, r: one.near.write(one.near_plane.buffer(65), r), "slice"),
    ("dst, remote", lambda one, r: one.near.read(one.near_plane.buffer(65), r), "slice"),
    ("remote", lambda one, r: one.near.write(one.near_plane.buffer(64), b""), "region(key)"),  # type: ignore[arg-type]
    ("remote", lambda one, r: one.far.write(one.far_plane.buffer(64), r), "import the key there"),
    ("src", lambda one, r: one.near.send(b"text"), "user="),  # type: ignore[arg-type]
    ("src", lambda one, r: one.near.send(one.far_plane.buffer(8)), "export"),
    ("stop", lambda one, r: r[:65], "at most 64"),
    ("count", lambda one, r: one.near.immediates(0), "at least 1"),
    ("operation", lambda one, r: one.near.rows("copy", one.near_plane.buffer(8)), "write_imm"),  # type: ignore[arg-type]
    ("remote", lambda one, r: one.near.rows("send", one.near_plane.buffer(8), r), "leave it out"),
    ("remote", lambda one, r: one.near.rows("write", one.near_plane.buffer(8)), "region(key)"),
    (
        "rows[2].local",
        lambda one, r: one.near.rows(
            "write", one.near_plane.buffer(64), r, local_offsets=[0, 8, 60], lengths=8
        ),
        "64 bytes",
    ),
    (
        "rows[1].remote",
        lambda one, r: one.near.rows(
            "write", one.near_plane.buffer(64), r, remote_offsets=[0, -8], lengths=8
        ),
        "64 bytes",
    ),
    (
        "rows[0].endpoint_id",
        lambda one, r: one.near.submit(np.zeros(2, dmaplane.SUBMISSION)),
        "endpoint.rows()",
    ),
]


@pytest.mark.parametrize(
    ("field", "act", "fix"), WRONG, ids=[f"{i}-{w[0]}" for i, w in enumerate(WRONG)]
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_bad_argument_names_the_field_and_the_fix(
    link: Any, field: str, act: Callable[[Any, Any], object], fix: str
) -> None:
    buffer, region, remote = link.opened(64)
    with buffer, region:
        with pytest.raises(dmaplane.InvalidError) as caught:
            act(link, remote)
        assert caught.value.field == field
        assert fix in caught.value.fix
        assert caught.value.errno is None, "Python must refuse it before it asks the plane"


def test_encryption_is_there_or_refused_with_the_reason(
    plane: dmaplane.Plane, far_plane: dmaplane.Plane
) -> None:
    with pytest.raises(dmaplane.NotAllowedError, match="secret"):
        far_plane.listen(encrypt=True)
    refused = None
    try:
        listener = far_plane.listen(encrypt=True, secret="x", require="tcp")
    except dmaplane.UnsupportedError as failure:
        refused = failure
    if refused is not None:  # the kernel has no TLS
        assert "modprobe tls" in refused.needs
        return
    with listener, concurrent.futures.ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept, timeout=SOON)
        with pytest.raises(dmaplane.UnsupportedError, match="in the clear"):
            plane.connect(listener.address, secret="x", timeout=SOON)
        with plane.connect(listener.address, secret="x", encrypt=True, timeout=SOON) as near:
            with accepting.result(SOON) as far, plane.buffer(64) as src, far_plane.buffer(64) as to:
                src.numpy()[:] = 3
                waiting = far.recv(to)
                near.send(src).wait(SOON)
                waiting.wait(SOON)
                assert (to.numpy() == 3).all()


def test_user_memory_is_reached_by_tcp_and_refused_by_shm_with_the_reason(
    link: Any, path: str
) -> None:
    memory = np.zeros(4096, np.uint8)
    with link.far_plane.buffer(user=memory) as buffer, buffer.region() as region:
        if path == "shm":
            with pytest.raises(dmaplane.UnsupportedError, match="kind user"):
                link.near.region(region.key)
            return
        with link.near.region(region.key) as remote, link.near_plane.buffer(4096) as src:
            src.numpy()[:] = 8
            link.near.write(src, remote).wait(SOON)
        assert (memory == 8).all()
