# SPDX-License-Identifier: MIT
"""Devices: dma-buf sources, GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dmaplane.doctor._check import Finding, lack, ok, warn

if TYPE_CHECKING:
    from dmaplane.doctor._machine import Machine

_INFINIBAND: Final = "/sys/class/infiniband"
_GPU_VENDORS: Final = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


def udmabuf(machine: Machine) -> Finding:
    """/dev/udmabuf turns a memfd into a dma-buf that any driver can import."""
    device = "/dev/udmabuf"
    if machine.usable(device):
        return ok("memfds can be exported as dma-buf")
    if machine.exists(device):
        return lack(
            f"{device} is there, and this user may not open it",
            cause="by default it belongs to root and the group kvm",
            fix=machine.as_root("usermod -aG kvm $USER"),
        )
    if machine.module_installed("udmabuf"):
        return lack(
            f"no {device}",
            cause="the module udmabuf is not loaded",
            fix=machine.on_host("modprobe udmabuf"),
        )
    if machine.container:
        return lack(
            f"no {device}",
            cause="not passed into this container, or not in the host's kernel",
            fix=f"docker run --device {device} ...",
        )
    return lack(
        f"no {device}",
        cause=f"kernel {machine.kernel_release} was built without CONFIG_UDMABUF",
        fix="Boot a kernel with CONFIG_UDMABUF; until then exports are memfds.",
    )


def dma_heap(machine: Machine) -> Finding:
    """dma-heaps: another source of dma-bufs, which can be imported."""
    heaps = machine.names("/dev/dma_heap")
    usable = [heap for heap in heaps if machine.usable(f"/dev/dma_heap/{heap}")]
    if usable:
        return ok(f"heaps: {', '.join(usable)}")
    if heaps:
        return lack(
            f"heaps ({', '.join(heaps)}) that this user may not open",
            cause="/dev/dma_heap/* belongs to root",
            fix=machine.as_root(f"setfacl -m u:{machine.user_id()}:rw /dev/dma_heap/{heaps[0]}"),
        )
    return lack(
        "no dma-heap",
        cause="no /dev/dma_heap: built without CONFIG_DMABUF_HEAPS, or not passed in",
        fix="docker run --device /dev/dma_heap/system ..."
        if machine.container
        else "Boot a kernel with CONFIG_DMABUF_HEAPS_SYSTEM; only needed for import tests.",
    )


def gpu(machine: Machine) -> Finding:
    """NVIDIA driver and device files; accelerators of other makers are named."""
    driver = machine.text("/proc/driver/nvidia/version")
    cards = [name for name in machine.names("/dev") if name[:6] == "nvidia" and name[6:].isdigit()]
    found = _gpus(machine)
    if driver:
        words = driver.splitlines()[0].split()
        version = next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
        if not cards:
            return lack(
                f"NVIDIA driver {version} without /dev/nvidia*",
                cause="no GPU was passed into this container"
                if machine.container
                else "the device files were not made",
                fix="docker run --gpus all ..."
                if machine.container
                else machine.as_root("nvidia-modprobe -u -c=0"),
            )
        if not machine.module_loaded("nvidia_peermem") and machine.names(_INFINIBAND):
            return warn(
                f"{len(cards)} GPU(s), NVIDIA driver {version}, no nvidia_peermem",
                cause="without it GPU memory reaches a NIC by dma-buf only",
                fix=machine.on_host("modprobe nvidia-peermem"),
            )
        return ok(f"{len(cards)} GPU(s), NVIDIA driver {version}")
    if "NVIDIA" in found:
        return lack(
            "an NVIDIA GPU without its driver",
            cause="the PCI device is there and /proc/driver/nvidia is not",
            fix=machine.install(debian="nvidia-driver", fedora="akmod-nvidia"),
        )
    if found:
        return warn(
            f"accelerator by {', '.join(found)}",
            cause="only NVIDIA memory can be a peer buffer so far",
            fix="Use host buffers; nothing else changes.",
        )
    return lack(
        "no GPU",
        cause="no display or 3D controller of an accelerator maker on the PCI bus",
        fix="docker run --gpus all ..."
        if machine.container
        else "Nothing has to be done: everything but peer buffers works without.",
    )


def _gpus(machine: Machine) -> tuple[str, ...]:
    makers = set()
    for address in machine.names("/sys/bus/pci/devices"):
        folder = f"/sys/bus/pci/devices/{address}"
        # Class 0x03xxxx is display; 0x0302 is a 3D controller without a screen.
        if (machine.text(f"{folder}/class") or "").startswith("0x03"):
            maker = _GPU_VENDORS.get(machine.text(f"{folder}/vendor") or "")
            if maker:
                makers.add(maker)
    return tuple(sorted(makers))
