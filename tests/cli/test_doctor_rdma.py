# SPDX-License-Identifier: MIT
"""Doctor in front of machines on which RDMA is broken in known ways."""

from __future__ import annotations

import pathlib
import sys

import pytest

from dmaplane import doctor

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from fake_machine import DOCKER, RELEASE, RXE, Case, check, examine

PORT = f"{RXE}/ports/1"
NO_DEVICE = ("/sys/class/infiniband", "/dev/infiniband")
LACKS_DEVICE = ("rdma-nodes", "rdma-gids", "rdma-mtu")

CASES = (
    Case(
        "RDMA link down",
        "rdma",
        "lack",
        "state ACTIVE",
        "ip link set ens1 up",
        files={f"{RXE}/ports/1/state": "1: DOWN"},
    ),
    Case(
        "no RDMA, Soft-RoCE possible",
        "rdma",
        "lack",
        "rdma_rxe",
        "rdma link add rxe0 type rxe netdev eth7",
        files={
            f"/lib/modules/{RELEASE}/modules.dep": "kernel/sw/rdma_rxe.ko.xz:\n",
            "/sys/class/net/eth7/mtu": "1500",
            "/sys/class/net/lo/mtu": "65536",
        },
        gone=(*NO_DEVICE, "/sys/class/net/ens1"),
        others=LACKS_DEVICE,
    ),
    Case(
        "no RDMA, and the first interface is no card",
        "rdma",
        "lack",
        "no link uses it",
        "rdma link add rxe0 type rxe netdev eth7",
        files={
            f"/lib/modules/{RELEASE}/modules.dep": "kernel/sw/rdma_rxe.ko.xz:\n",
            "/sys/class/net/eth7/device/vendor": "0x1af4",
            "/sys/class/net/dummy0/mtu": "1500",
        },
        gone=NO_DEVICE,
        others=LACKS_DEVICE,
    ),
    Case(
        "Mellanox without driver",
        "rdma",
        "lack",
        "mlx5_ib is not loaded",
        "modprobe mlx5_ib",
        files={
            "/sys/bus/pci/devices/0000:5e:00.0/vendor": "0x15b3",
            "/sys/bus/pci/devices/0000:5e:00.0/class": "0x020000",
        },
        gone=(*NO_DEVICE, "/sys/class/net/ens1"),
        others=LACKS_DEVICE,
    ),
    Case(
        "rdma_ucm not loaded",
        "rdma-nodes",
        "lack",
        "rdma_ucm",
        "sudo modprobe rdma_ucm",
        gone=("/dev/infiniband/rdma_cm",),
    ),
    Case(
        "verbs not passed into the container",
        "rdma-nodes",
        "lack",
        "not visible in this container",
        "docker run --device /dev/infiniband",
        files=DOCKER,
        gone=("/dev/infiniband",),
    ),
    Case(
        "exclusive devices in another namespace",
        "rdma-netns",
        "lack",
        "the mode is exclusive",
        "sudo rdma dev set DEVICE netns",
        files={"/sys/module/ib_core/parameters/netns_mode": "N"},
        gone=NO_DEVICE,
        others=(*LACKS_DEVICE, "rdma"),
    ),
    Case(
        "exclusive devices in a container",
        "rdma-netns",
        "lack",
        "one network namespace only",
        "rdma system set netns shared  # on the host",
        files={**DOCKER, "/sys/module/ib_core/parameters/netns_mode": "N"},
        gone=NO_DEVICE,
        others=(*LACKS_DEVICE, "rdma"),
    ),
    Case(
        "verbs not loaded",
        "rdma-modules",
        "lack",
        "nothing has needed them",
        "sudo modprobe -a ib_uverbs rdma_ucm",
        files={
            f"/lib/modules/{RELEASE}/modules.dep": "kernel/core/ib_uverbs.ko.xz:\n"
            "kernel/core/rdma_ucm.ko.xz:\nextra/dmaplane.ko:\n"
        },
        gone=("/sys/class/infiniband_verbs", "/sys/class/misc"),
    ),
    Case(
        "verbs not built",
        "rdma-modules",
        "lack",
        "no such module",
        "CONFIG_INFINIBAND_USER_ACCESS",
        gone=("/sys/class/infiniband_verbs",),
    ),
    Case(
        "no librdmacm",
        "rdma-libraries",
        "lack",
        "librdmacm.so.1: cannot open",
        "sudo apt-get install libibverbs1 librdmacm1 ibverbs-providers",
        calls={"libraries": ("libibverbs.so.1", "libcuda.so.1")},
    ),
    Case(
        "libibverbs without drivers on Fedora",
        "rdma-libraries",
        "lack",
        "finds no device",
        "sudo dnf install libibverbs librdmacm",
        files={"/usr/bin/dnf": ""},
        gone=("/etc/libibverbs.d",),
    ),
    Case(
        "a plane without rdma-core's headers",
        "rdma-plane",
        "lack",
        "built without rdma-core's headers",
        "Install libibverbs-dev",
        calls={
            "verbs_missing": "missing-feature: this libdmaplane was built without rdma-core's "
            "headers; install libibverbs-dev and librdmacm-dev, then build it again"
        },
    ),
    Case(
        "an interface without an address",
        "rdma-gids",
        "lack",
        "ens1 has no IP address",
        "sudo ip address add 192.0.2.1/24 dev ens1",
        gone=(f"{PORT}/gids/1",),
    ),
    Case(
        "RoCE v1 only",
        "rdma-gids",
        "lack",
        "no RoCE v2",
        "dev ens1",
        files={f"{PORT}/gid_attrs/types/1": "IB/RoCE v1"},
    ),
    Case(
        "GIDs of another namespace",
        "rdma-gids",
        "lack",
        "of the namespace it is made in",
        "docker run --network host",
        files={**DOCKER, f"{PORT}/gid_attrs/ndevs/1": "ens9"},
    ),
    Case(
        "InfiniBand without a subnet manager",
        "rdma-gids",
        "lack",
        "no subnet manager",
        "opensm",
        files={f"{PORT}/link_layer": "InfiniBand"},
        gone=(f"{PORT}/gids",),
    ),
    Case(
        "MTU of 1500",
        "rdma-mtu",
        "warn",
        "4096 bytes take 4192",
        "sudo ip link set dev ens1 mtu 4200",
        files={"/sys/class/net/ens1/mtu": "1500"},
    ),
    Case(
        "memlock limit of 512 MiB",
        "rdma-memlock",
        "warn",
        "lacks CAP_IPC_LOCK",
        "/etc/security/limits.d",
        calls={"memlock_limit_bytes": 512 << 20},
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_broken_machine(tmp_path: pathlib.Path, case: Case) -> None:
    check(tmp_path, case)


def test_every_complaint_has_cause_and_fix(tmp_path: pathlib.Path) -> None:
    for number, case in enumerate(CASES):
        for result in examine(tmp_path / str(number), case).checks:
            assert bool(result.cause) == bool(result.fix) == (result.verdict != "ok"), result
            assert len(result.finding.splitlines()) == 1


@pytest.mark.parametrize(
    ("frame", "packet"),
    [(4192, 4096), (4191, 2048), (1500, 1024), (1119, 512), (352, 256), (9000, 4096)],
)
def test_the_largest_packet_that_fits(tmp_path: pathlib.Path, frame: int, packet: int) -> None:
    case = Case("", "", "", "", "", files={"/sys/class/net/ens1/mtu": str(frame)})
    result = examine(tmp_path, case).result("rdma-mtu")
    assert f"mlx5_0: {packet} bytes a packet, ens1 has an MTU of {frame}" in result.finding
    assert result.verdict == ("ok" if packet == 4096 else "warn")


def test_the_right_to_lock_memory_overrides_the_limit(tmp_path: pathlib.Path) -> None:
    case = Case(
        "", "", "", "", "", calls={"memlock_limit_bytes": 65536},
        files={"/proc/self/status": "Seccomp:\t0\nCapEff:\t0000000000004000\n"},
    )  # fmt: skip
    assert examine(tmp_path, case).result("rdma-memlock").verdict == "ok"


def test_healthy_machine_names_its_addresses(tmp_path: pathlib.Path) -> None:
    assert examine(tmp_path).result("rdma-gids").finding == "mlx5_0: 192.0.2.1 (RoCE v2)"


def test_a_library_is_really_opened() -> None:
    machine = doctor.Machine()
    assert machine.open_library("libc.so.6") == ""
    assert "no-such-library" in machine.open_library("no-such-library.so.1")
