# SPDX-License-Identifier: MIT
"""RDMA: everything between a program and a peer's memory, from the modules to the GIDs.

Read from /sys and /proc only: no netlink, no device is opened, no right is needed. The last check
asks the embedded plane's library, which does open.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, NamedTuple

from dmaplane.doctor._check import Finding, lack, ok, size, warn
from dmaplane.doctor._machine import UNLIMITED
from dmaplane.doctor._memory import lift_memlock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmaplane.doctor._machine import Machine

LOCKED_WANTED_BYTES: Final = 1 << 30
PACKET_MAX: Final = 4096
PACKET_MIN: Final = 256
HEADERS: Final = 96
"""Room the kernel keeps in a packet of RoCE for all headers that there can be."""

_INFINIBAND: Final = "/sys/class/infiniband"
_LIBRARIES: Final = ("libibverbs.so.1", "librdmacm.so.1")
_NETNS_MODE: Final = "/sys/module/ib_core/parameters/netns_mode"
# What each module puts there, also where it is built into the kernel.
_MODULES: Final = {
    "ib_core": _INFINIBAND,
    "ib_uverbs": "/sys/class/infiniband_verbs",
    "rdma_ucm": "/sys/class/misc/rdma_cm",
}
_CAP_IPC_LOCK: Final = 14


def modules(machine: Machine) -> Finding:
    """The kernel's side of verbs and of the connection manager."""
    missing = [
        name
        for name, shown in _MODULES.items()
        if not machine.exists(shown) and not machine.module_loaded(name)
    ]
    if not missing:
        return ok(", ".join(_MODULES))
    listed = ", ".join(missing)
    if machine.container or all(machine.module_installed(name) for name in missing):
        return lack(
            f"{listed} not loaded",
            cause="nothing has needed them yet: they come with an RDMA device's driver or by hand",
            fix=machine.on_host(f"modprobe -a {' '.join(missing)}"),
        )
    return lack(
        f"no {listed}",
        cause=f"kernel {machine.kernel_release} has no such module",
        fix="Boot a kernel with CONFIG_INFINIBAND_USER_ACCESS and CONFIG_INFINIBAND_ADDR_TRANS.",
    )


def libraries(machine: Machine) -> Finding:
    """rdma-core's, which the embedded plane opens when it runs. They are really opened."""
    reasons = {name: machine.open_library(name) for name in _LIBRARIES}
    failed = {name: reason for name, reason in reasons.items() if reason}
    fix = machine.install(
        debian="libibverbs1 librdmacm1 ibverbs-providers", fedora="libibverbs librdmacm"
    )
    if failed:
        return lack(
            f"no {', '.join(failed)}", cause="; ".join(sorted(set(failed.values()))), fix=fix
        )
    drivers = [
        name.removesuffix(".driver")
        for name in machine.names("/etc/libibverbs.d")
        if name.endswith(".driver")
    ]
    if not drivers:
        return lack(
            "libibverbs without drivers",
            cause="/etc/libibverbs.d names none, so it finds no device",
            fix=fix,
        )
    return ok(f"{', '.join(_LIBRARIES)}; drivers for {len(drivers)} kinds of device")


def plane(machine: Machine) -> Finding:
    """The embedded plane's own word: it asks its libraries for a device and a manager."""
    missing = machine.verbs_missing()
    if not missing:
        return ok("the embedded plane has path verbs")
    what, _, fix = missing.partition(": ")[2].partition("; ")
    return lack(
        "the embedded plane has no path verbs",
        cause=what or missing,
        fix=fix[:1].upper() + fix[1:] + "." if fix else "Do what the checks above say first.",
    )


class _Gid(NamedTuple):
    """An address of a port, and the interface it comes from."""

    device: str
    address: ipaddress.IPv6Address
    kind: str
    interface: str

    def __str__(self) -> str:
        shown = self.address.ipv4_mapped or self.address
        return f"{self.device}: {shown}" + (f" ({self.kind})" if self.kind else "")


def _gids(machine: Machine) -> Iterator[_Gid]:
    for device, port, _ in _ports(machine):
        folder = f"{_INFINIBAND}/{device}/ports/{port}"
        for index in sorted(machine.names(f"{folder}/gids"), key=lambda name: (len(name), name)):
            try:
                address = ipaddress.IPv6Address(machine.text(f"{folder}/gids/{index}") or "::")
            except ValueError:
                continue
            if int(address):
                kind = machine.text(f"{folder}/gid_attrs/types/{index}") or ""
                interface = machine.text(f"{folder}/gid_attrs/ndevs/{index}") or ""
                yield _Gid(device, address, kind, interface)


def _ports(machine: Machine) -> Iterator[tuple[str, str, str]]:
    """Each port of each device, and what it is plugged into."""
    for device in machine.names(_INFINIBAND):
        for port in machine.names(f"{_INFINIBAND}/{device}/ports"):
            layer = machine.text(f"{_INFINIBAND}/{device}/ports/{port}/link_layer")
            yield device, port, layer or "unknown"


def _no_device() -> Finding:
    return lack(
        "no RDMA device to look at",
        cause="there is none (see rdma)",
        fix="Do what the check rdma says first.",
    )


def gids(machine: Machine) -> Finding:
    """Addresses of the ports: without one that an IP address leads to, nobody is reached."""
    if not machine.names(_INFINIBAND):
        return _no_device()
    ethernet = {device for device, _, layer in _ports(machine) if layer == "Ethernet"}
    found = list(_gids(machine))
    useful = [
        gid
        for gid in found
        if gid.device not in ethernet or ("v2" in gid.kind and not gid.address.is_link_local)
    ]
    here = [gid for gid in useful if not gid.interface or _has(machine, gid.interface)]
    if here:
        return ok("; ".join(map(str, here[:4])) + (" ..." if len(here) > 4 else ""))
    if useful:
        owner = useful[0].interface
        return lack(
            f"{useful[0]}, and {owner} is not in this network namespace",
            cause="a connection starts from an address of the namespace it is made in",
            fix="docker run --network host ..."
            if machine.container
            else f"Run it in the network namespace that has {owner}.",
        )
    device = machine.names(_INFINIBAND)[0]
    if device not in ethernet:
        return lack(
            f"{device} has no GID",
            cause="no subnet manager has given its port an address",
            fix="Start opensm on one machine of the fabric.",
        )
    interface = _net_device(machine, device)
    return lack(
        f"{device} has no GID that an IP address leads to",
        cause=f"{interface} has no IP address of its own, or the device has no RoCE v2",
        fix=machine.on_host(f"ip address add 192.0.2.1/24 dev {interface}"),
    )


def _has(machine: Machine, interface: str) -> bool:
    return machine.exists(f"/sys/class/net/{interface}")


def mtu(machine: Machine) -> Finding:
    """How many bytes a packet of RDMA holds: what the interface's MTU leaves of 4096."""
    if not machine.names(_INFINIBAND):
        return _no_device()
    told, small = [], []
    for device, _, layer in _ports(machine):
        if layer != "Ethernet":
            told.append(f"{device}: {layer}, which has an MTU of its own")
            continue
        interface = _net_device(machine, device)
        frame = machine.number(f"/sys/class/net/{interface}/mtu")
        if frame is None:
            told.append(f"{device}: the MTU of {interface} is not to be seen here")
            continue
        packet = PACKET_MAX
        while packet > PACKET_MIN and packet + HEADERS > frame:
            packet //= 2
        told.append(f"{device}: {packet} bytes a packet, {interface} has an MTU of {frame}")
        if packet < PACKET_MAX:
            small.append(interface)
    listed = "; ".join(told)
    if not small:
        return ok(listed)
    return warn(
        listed,
        cause=f"a packet and its headers have to fit into the interface's MTU: {PACKET_MAX} "
        f"bytes take {PACKET_MAX + HEADERS}; smaller ones cost more time for each byte",
        fix=machine.on_host(f"ip link set dev {small[0]} mtu 4200") + _both_ends(machine),
    )


def _both_ends(machine: Machine) -> str:
    return "" if machine.container else "  # at both ends, and the switches between them"


def memlock(machine: Machine) -> Finding:
    """Registered memory is pinned, and counts against the limit of the user's process."""
    limit = machine.memlock_limit_bytes()
    said = "unlimited" if limit == UNLIMITED else size(limit)
    effective = machine.fields("/proc/self/status").get("CapEff", "0")
    if int(effective, 16) >> _CAP_IPC_LOCK & 1:
        return ok(f"any amount can be registered: CAP_IPC_LOCK (limit: {said})")
    if limit == UNLIMITED or limit >= LOCKED_WANTED_BYTES:
        return ok(f"up to {said} can be registered" if limit != UNLIMITED else said)
    return warn(
        f"regions of {said} in all can be registered",
        cause=f"RLIMIT_MEMLOCK is {said} and this process lacks CAP_IPC_LOCK",
        fix=lift_memlock(machine),
    )


def namespaces(machine: Machine) -> Finding:
    """Does every network namespace see every device, or each its own?"""
    mode = machine.text(_NETNS_MODE)
    found = machine.names(_INFINIBAND)
    if mode is None:
        return ok("the RDMA core is not loaded, or has no such modes")
    if mode == "Y":
        return ok("shared: every network namespace sees every device")
    if found:
        return ok(f"exclusive: this network namespace has {', '.join(found)}")
    return lack(
        "no RDMA device is in this network namespace",
        cause="the mode is exclusive: each device is seen in one network namespace only",
        fix=machine.on_host("rdma dev set DEVICE netns NAME")
        if not machine.container
        else "rdma system set netns shared  # on the host, as root, before containers start",
    )


def devices(machine: Machine) -> Finding:
    """RDMA devices, and whether a port of one is up."""
    found = machine.names(_INFINIBAND)
    if found:
        down = [device for device in found if not _port_up(machine, device)]
        if len(down) < len(found):
            up = [device for device in found if device not in down]
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


def device_files(machine: Machine) -> Finding:
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
    """The interface below a RoCE device; the first of all if the device does not say."""
    names = machine.names(f"{_INFINIBAND}/{device}/device/net")
    parent = machine.text(f"{_INFINIBAND}/{device}/parent")  # of a software device
    return names[0] if names else parent or _first_nic(machine)


def _first_nic(machine: Machine) -> str:
    """One that is a device, if there is such; dummies and bridges are not."""
    names = [name for name in machine.names("/sys/class/net") if name != "lo"]
    real = [name for name in names if machine.exists(f"/sys/class/net/{name}/device")]
    return [*real, *names, "lo"][0]
