# SPDX-License-Identifier: MIT
"""Experiment 0 of `bench stream-tiers`: what of the machine its figures depend on.

Read from /sys and /proc and from nvidia-smi where that is installed. What cannot be read is left
out, or said to be unreadable; nothing is changed: no clock, no mode, no limit.
"""

from __future__ import annotations

import os
import pathlib
import re
import resource
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, Any, Final

from dmaplane.stream.nic import cards

if TYPE_CHECKING:
    from dmaplane.bench._tiers_bed import Box
    from dmaplane.bench._tiers_sheet import Sheet

_TEXT_MAX: Final = 4096
_FLAGS: Final = ("avx2", "avx512f", "movdiri", "movdir64b", "clflushopt", "hypervisor")
_QUERY: Final = (
    *("name", "uuid", "driver_version", "pci.bus_id", "vbios_version", "mig.mode.current"),
    *("pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current"),
    *(
        "memory.total",
        "clocks.sm",
        "clocks.mem",
        "clocks.max.sm",
        "power.limit",
        "persistence_mode",
    ),
)
_CAPABILITIES_BEGIN: Final = 0x34
_PCI_EXPRESS: Final = 0x10
_CAPABILITIES_MAX: Final = 48
_RELAXED, _EXTENDED_TAG, _TEN_BIT_TAG = 1 << 4, 1 << 8, 1 << 12


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()[:_TEXT_MAX]
    except OSError as error:
        return f"unreadable: {error.strerror}"


def express(config: bytes) -> dict[str, int | bool]:
    """What the PCI Express capability in a device's configuration space says.

    Empty if it is not there, or the part that was read does not reach so far (without root that
    is 64 bytes).
    """
    if len(config) <= _CAPABILITIES_BEGIN:
        return {}
    at = config[_CAPABILITIES_BEGIN] & ~3
    for _ in range(_CAPABILITIES_MAX):
        if not at or at + 2 > len(config):
            return {}
        if config[at] == _PCI_EXPRESS:
            break
        at = config[at + 1] & ~3
    if at + 0x2A > len(config) or config[at] != _PCI_EXPRESS:
        return {}
    (control,) = struct.unpack_from("<H", config, at + 0x08)
    (status,) = struct.unpack_from("<H", config, at + 0x12)
    (second,) = struct.unpack_from("<H", config, at + 0x28)
    return {
        "payload_bytes_max": 128 << (control >> 5 & 7),
        "read_request_bytes_max": 128 << (control >> 12 & 7),
        "relaxed_ordering": bool(control & _RELAXED),
        "extended_tag": bool(control & _EXTENDED_TAG),
        "ten_bit_tag": bool(second & _TEN_BIT_TAG),
        "link_generation": status & 15,
        "link_width": status >> 4 & 63,
    }


def _link(folder: pathlib.Path) -> dict[str, Any]:
    told: dict[str, Any] = {
        name: _text(folder / name)
        for name in (
            *("current_link_speed", "current_link_width", "max_link_speed", "max_link_width"),
            "numa_node",
        )
    }
    try:
        told.update(express((folder / "config").read_bytes()))
    except OSError as error:
        told["config"] = f"unreadable: {error.strerror}"
    told["bars"] = _bars(_text(folder / "resource"))
    return told


def _bars(resources: str) -> list[int]:
    """Bytes of each BAR, as /sys lists them."""
    sizes = []
    for line in resources.splitlines()[:6]:
        words = re.findall(r"0x[0-9a-f]+", line)
        if len(words) == 3:
            begin, last = int(words[0], 16), int(words[1], 16)
            sizes.append(last - begin + 1 if last else 0)
    return sizes


def _asked(*command: str) -> str:
    """What a program says; or why it does not."""
    if shutil.which(command[0]) is None:
        return "not installed"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=8, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"failed: {error}"
    return (done.stdout if done.returncode == 0 else f"failed: {done.stderr}").strip()[:_TEXT_MAX]


def _processor() -> dict[str, Any]:
    words = re.search(r"^flags\s*:(.*)$", _text_long("/proc/cpuinfo"), re.MULTILINE)
    flags = words[1].split() if words else []
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return {
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cpus": sorted(os.sched_getaffinity(0)),
        "virtualisation": _text(pathlib.Path("/sys/class/dmi/id/product_name")),
        "memlock_bytes": [soft, hard],
        "huge_pages": {
            folder.name: _text(folder / "nr_hugepages")
            for folder in sorted(pathlib.Path("/sys/kernel/mm/hugepages").glob("hugepages-*"))
        },
        "transparent_huge_pages": _text(
            pathlib.Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
        ),
    }


def _text_long(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(1 << 16)


def machine(sheet: Sheet, box: Box) -> None:
    """0: into the notes; the one row says how many network cards there are."""
    bed = sheet.bed
    nodes = bed.plane.topology().nodes
    devices = sorted(path.name for path in pathlib.Path("/dev").glob("nvidia*"))
    told: dict[str, Any] = {
        "processor": _processor(),
        "nodes": {str(node.node): node.memory_bytes for node in nodes},
        "devices": devices[:64],
        "udmabuf": os.access("/dev/udmabuf", os.R_OK | os.W_OK),
        "cards": [{"name": card.name, "node": card.node, "lacks": card.lacks} for card in cards()],
    }
    told["nvidia-smi"] = (
        "the box was empty"
        if box.over
        else _asked("nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv")
    )
    folder: pathlib.Path | None = getattr(bed.device, "pci_folder", None)
    if folder is not None:
        told["link"] = _link(folder)
        told["bar1"] = _asked("nvidia-smi", "-q", "-d", "MEMORY", "-i", folder.name)
        told["confidential"] = _asked("nvidia-smi", "conf-compute", "-f")
    sheet.measured.notes["machine"] = told
    sheet.row("network cards", "cards", [float(len(told["cards"]))])
