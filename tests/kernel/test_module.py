# SPDX-License-Identifier: MIT
"""The module as an administrator meets it: loading, unloading, its node, its parameters."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attack
import kmsg
import pytest
from driver import Driver

import dmaplane
from dmaplane import _abi
from dmaplane.testing import _rig

PAGE = mmap.PAGESIZE
MIB = 1 << 20
RELOADS = 20 if attack.IS_DEBUG else 100
NODE_WITHIN_S = 5.0


def wait_for_node(*, there: bool) -> None:
    """devtmpfs makes and removes the node in a thread of its own."""
    _rig.wait_until(lambda: attack.DEVICE.exists() == there, NODE_WITHIN_S, "the device node")


def open_plane() -> dmaplane.Plane:
    wait_for_node(there=True)
    return dmaplane.open(plane="kernel")


def refuses_to_go(driver: Driver) -> bool:
    """The kernel's own answer, not rmmod's, which only looks at a number."""
    answer = attack.delete_module(driver.name)
    if answer == 0:
        driver.load()
    return answer == errno.EWOULDBLOCK


@contextmanager
def reloaded(driver: Driver, *parameters: str) -> Iterator[None]:
    """The module with other parameters, and afterwards as it was."""
    driver.unload()
    driver.load(*parameters)
    wait_for_node(there=True)
    try:
        yield
    finally:
        driver.wait_users(0, NODE_WITHIN_S)
        driver.unload()
        driver.load()
        wait_for_node(there=True)


@pytest.mark.timeout(1200)
def test_loads_and_unloads_many_times(driver: Driver) -> None:
    for _ in range(RELOADS):
        assert attack.delete_module(driver.name) == 0
        assert not driver.loaded
        wait_for_node(there=False)
        assert attack.load_module(driver.path) == 0
        with open_plane() as plane:
            made = _rig.create_buffer(plane, PAGE)
            assert _rig.destroy(plane, _abi.BUFFER_DESTROY, made.buffer_id) == 0


def test_an_open_file_keeps_the_module(driver: Driver) -> None:
    fd = os.open(attack.DEVICE, os.O_RDWR)
    try:
        assert refuses_to_go(driver)
    finally:
        os.close(fd)
    assert driver.wait_users(0, 1.0)


def test_a_mapping_keeps_the_module_after_its_file(driver: Driver) -> None:
    fd = os.open(attack.DEVICE, os.O_RDWR)
    request = _abi.BufferCreate(size=ctypes.sizeof(_abi.BufferCreate), length_bytes=PAGE, node=-1)
    assert attack.ask(fd, _abi.BUFFER_CREATE, request) == 0
    mapping = mmap.mmap(fd, PAGE, offset=request.map_offset)
    os.close(fd)
    try:
        mapping[:4] = b"kept"
        assert refuses_to_go(driver)
        assert mapping[:4] == b"kept"
    finally:
        mapping.close()
    assert driver.wait_users(0, 1.0)


def test_rings_keep_the_module_after_their_file(driver: Driver) -> None:
    fd = os.open(attack.DEVICE, os.O_RDWR)
    request = _abi.ChannelCreate(size=ctypes.sizeof(_abi.ChannelCreate), slots=4)
    assert attack.ask(fd, _abi.CHANNEL_CREATE, request) == 0
    mapping = mmap.mmap(fd, request.map_bytes, offset=request.map_offset)
    os.close(fd)
    try:
        assert refuses_to_go(driver)
    finally:
        mapping.close()
    assert driver.wait_users(0, 1.0)


def test_an_export_keeps_the_module_after_its_plane(driver: Driver) -> None:
    with open_plane() as plane:
        made = _rig.create_buffer(plane, PAGE)
        fd = _rig.export_buffer(plane, made.buffer_id)
    try:
        assert refuses_to_go(driver)
        with mmap.mmap(fd, PAGE) as mapping:
            assert mapping[:] == bytes(PAGE)
    finally:
        os.close(fd)
    assert driver.wait_users(0, 1.0)


def test_a_mapped_export_keeps_the_module_after_its_fd(driver: Driver) -> None:
    with open_plane() as plane:
        made = _rig.create_buffer(plane, PAGE)
        fd = _rig.export_buffer(plane, made.buffer_id)
    mapping = mmap.mmap(fd, PAGE)
    os.close(fd)
    try:
        assert refuses_to_go(driver)
    finally:
        mapping.close()
    assert driver.wait_users(0, 1.0)


def test_an_export_in_a_socket_keeps_the_module(driver: Driver) -> None:
    """Nobody has it open: it is on its way from one process to another."""

    left, right = socket.socketpair()
    with left, right:
        with open_plane() as plane:
            made = _rig.create_buffer(plane, PAGE)
            fd = _rig.export_buffer(plane, made.buffer_id)
            socket.send_fds(left, [b"x"], [fd])
            os.close(fd)
        assert refuses_to_go(driver)
    assert driver.wait_users(0, 1.0)


def test_only_root_and_the_group_may_open() -> None:
    wait_for_node(there=True)
    status = attack.DEVICE.stat()
    assert stat.S_ISCHR(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o660
    group = 4242
    assert attack.try_open_as_nobody([]) == errno.EACCES
    with attack.open_to_group(group):
        assert attack.try_open_as_nobody([]) == errno.EACCES
        assert attack.try_open_as_nobody([group]) == 0
    assert attack.try_open_as_nobody([group]) == errno.EACCES


def test_bytes_max_is_the_limit_of_all_planes_together(driver: Driver) -> None:
    with reloaded(driver, f"bytes_max={MIB}"), open_plane() as one, open_plane() as other:
        request = _abi.BufferCreate(length_bytes=MIB + 1, node=-1)
        assert _rig.ask(one, _abi.BUFFER_CREATE, request) == -errno.ENOSPC
        made = _rig.create_buffer(one, MIB)
        request = _abi.BufferCreate(length_bytes=1, node=-1)
        assert _rig.ask(other, _abi.BUFFER_CREATE, request) == -errno.ENOSPC
        channel = _abi.ChannelCreate(slots=1)
        assert _rig.ask(other, _abi.CHANNEL_CREATE, channel) == -errno.ENOSPC
        assert _rig.destroy(one, _abi.BUFFER_DESTROY, made.buffer_id) == 0
        _rig.create_buffer(other, PAGE)


def test_rings_count_against_bytes_max(driver: Driver) -> None:
    with reloaded(driver, f"bytes_max={4 * MIB}"), open_plane() as plane:
        large = _abi.ChannelCreate(slots=65536)
        assert _rig.ask(plane, _abi.CHANNEL_CREATE, large) == -errno.ENOSPC
        assert _rig.ask(plane, _abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=64)) == 0


def test_buffers_max_is_the_limit_of_all_planes_together(driver: Driver) -> None:
    with reloaded(driver, "buffers_max=2"), open_plane() as one, open_plane() as other:
        made = _rig.create_buffer(one, PAGE)
        fd = _rig.export_buffer(one, made.buffer_id)
        try:
            bought = _abi.BufferImport(fd=fd)
            assert _rig.ask(other, _abi.BUFFER_IMPORT, bought) == 0
            assert _rig.ask(other, _abi.BUFFER_IMPORT, _abi.BufferImport(fd=fd)) == -errno.ENOSPC
            assert _rig.destroy(other, _abi.BUFFER_DESTROY, bought.buffer_id) == 0
            assert _rig.ask(other, _abi.BUFFER_IMPORT, _abi.BufferImport(fd=fd)) == 0
        finally:
            os.close(fd)


def test_channels_max_is_the_limit_of_all_planes_together(driver: Driver) -> None:
    with reloaded(driver, "channels_max=1"), open_plane() as one, open_plane() as other:
        mine = _abi.ChannelCreate(slots=1)
        assert _rig.ask(one, _abi.CHANNEL_CREATE, mine) == 0
        assert _rig.ask(other, _abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=1)) == -errno.ENOSPC
        assert _rig.destroy(one, _abi.CHANNEL_DESTROY, mine.channel_id) == 0
        assert _rig.ask(other, _abi.CHANNEL_CREATE, _abi.ChannelCreate(slots=1)) == 0


@pytest.mark.parametrize("parameter", ["bytes_max=much", "buffers_max=-1", "channels_max=1e9"])
def test_a_parameter_that_is_no_number_is_refused(driver: Driver, parameter: str) -> None:
    driver.unload()
    try:
        with pytest.raises(subprocess.CalledProcessError):
            driver.load(parameter)
        assert not driver.loaded
        assert not attack.DEVICE.exists()
    finally:
        driver.load()
    wait_for_node(there=True)


def test_nothing_is_said_when_it_is_loaded(driver: Driver) -> None:
    """A user's mistake, or the module's coming and going, is no news for the kernel's log."""

    with kmsg.Reader() as log:
        driver.unload()
        driver.load()
        with open_plane() as plane:
            request = _abi.BufferCreate(length_bytes=0, node=-1)
            assert _rig.ask(plane, _abi.BUFFER_CREATE, request) == -errno.EINVAL
        said = [line for line in log.lines() if "dmaplane" in line]
    assert not [line for line in said if "dmaplane-test" not in line]


@pytest.mark.timeout(1200)
def test_every_failure_while_it_loads_leaves_nothing(
    program: Callable[[str], Path], driver: Driver
) -> None:
    if not attack.IS_DEBUG:
        pytest.skip("this kernel has no fault injection (CONFIG_FAULT_INJECTION)")
    driver.unload()
    try:
        said = attack.run(program("loader"), driver.path)
    finally:
        if not driver.loaded:
            driver.load()
    wait_for_node(there=True)
    assert "refused" in said


def test_unloading_does_not_wait_for_the_revocation_of_anything(driver: Driver) -> None:
    began = time.monotonic()
    with open_plane() as plane:
        _rig.create_buffer(plane, MIB)
    driver.unload()
    assert time.monotonic() - began < NODE_WITHIN_S * attack.SLOWNESS
    driver.load()
    wait_for_node(there=True)
