# SPDX-License-Identifier: MIT
"""Devices: dma-buf sources, RDMA, GPU."""

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


def rdma(machine: Machine) -> Finding:
    """RDMA devices, and whether a port of one is up."""
    devices = machine.names(_INFINIBAND)
    if devices:
        down = [device for device in devices if not _port_up(machine, device)]
        if len(down) < len(devices):
            up = [device for device in devices if device not in down]
            return ok(", ".join(f"{device} ({_kind(machine, device)})" for device in up))
        return lack(
            f"RDMA devices {', '.join(down)} have no active port",
            cause="no port of them is in state ACTIVE: no cable, or the link is down",
            fix=machine.on_host(f"ip link set {_net_device(machine, down[0])} up"),
        )
    if _mellanox(machine) and not machine.module_loaded("mlx5_ib"):
        return lack(
            "an NVIDIA/Mellanox NIC without its RDMA driver",
            cause="mlx5_ib is not loaded",
            fix=machine.on_host("modprobe mlx5_ib"),
        )
    if machine.module_installed("rdma_rxe"):
        return lack(
            "no RDMA device",
            cause="no RDMA NIC; Soft-RoCE (rdma_rxe) is installed and no link uses it",
            fix=machine.on_host(
                "sh -c 'modprobe rdma_rxe && rdma link add rxe0 type rxe netdev "
                f"{_first_nic(machine)}'"
            ),
        )
    return lack(
        "no RDMA device",
        cause="no NIC in this machine has RDMA, and this kernel has no rdma_rxe module",
        fix="Fit an RDMA NIC, or boot a kernel with CONFIG_RDMA_RXE for Soft-RoCE.",
    )


def rdma_nodes(machine: Machine) -> Finding:
    """The device files user space talks to RDMA through."""
    names = machine.names("/dev/infiniband")
    verbs = [name for name in names if name.startswith("uverbs")]
    if not names:
        if not machine.names(_INFINIBAND):
            return lack(
                "no /dev/infiniband",
                cause="there is no RDMA device (see rdma)",
                fix="Do what the check rdma says first.",
            )
        return lack(
            "RDMA devices without /dev/infiniband",
            cause="the device files of the host are not visible in this container"
            if machine.container
            else "ib_uverbs is not loaded",
            fix="docker run --device /dev/infiniband ..."
            if machine.container
            else machine.as_root("modprobe ib_uverbs"),
        )
    if "rdma_cm" not in names:
        return lack(
            "/dev/infiniband/rdma_cm is missing",
            cause="rdma_ucm is not loaded",
            fix=machine.on_host("modprobe rdma_ucm"),
        )
    closed = [name for name in (*verbs, "rdma_cm") if not machine.usable(f"/dev/infiniband/{name}")]
    if closed:
        return lack(
            f"this user may not open {', '.join(closed)}",
            cause="the device files are not readable and writable for this user",
            fix=machine.as_root(f"chmod 0666 /dev/infiniband/{closed[0]}"),
        )
    return ok(f"rdma_cm and {', '.join(verbs) or 'no uverbs'}")


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


def _mellanox(machine: Machine) -> bool:
    return any(
        machine.text(f"/sys/bus/pci/devices/{address}/vendor") == "0x15b3"
        for address in machine.names("/sys/bus/pci/devices")
    )


def _port_up(machine: Machine, device: str) -> bool:
    return any(
        "ACTIVE" in (machine.text(f"{_INFINIBAND}/{device}/ports/{port}/state") or "")
        for port in machine.names(f"{_INFINIBAND}/{device}/ports")
    )


def _kind(machine: Machine, device: str) -> str:
    layers = {
        machine.text(f"{_INFINIBAND}/{device}/ports/{port}/link_layer")
        for port in machine.names(f"{_INFINIBAND}/{device}/ports")
    }
    if not machine.exists(f"{_INFINIBAND}/{device}/device"):
        return "software"
    return ", ".join(sorted(layer for layer in layers if layer)) or "unknown link"


def _net_device(machine: Machine, device: str) -> str:
    names = machine.names(f"{_INFINIBAND}/{device}/device/net")
    return names[0] if names else _first_nic(machine)


def _first_nic(machine: Machine) -> str:
    names = [name for name in machine.names("/sys/class/net") if name != "lo"]
    return names[0] if names else "lo"
