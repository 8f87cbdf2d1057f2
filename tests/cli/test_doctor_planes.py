# SPDX-License-Identifier: MIT
"""What doctor says where the kernel plane is missing, shut, of another age, or broken."""

from __future__ import annotations

import pathlib
import sys

import pytest

from dmaplane import doctor
from dmaplane.doctor import _trial

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from fake_machine import DOCKER, RELEASE, Case, check, examine

DEVICE, LOADED = "/dev/dmaplane", "/sys/module/dmaplane"
NOT_INSTALLED = {f"/lib/modules/{RELEASE}/modules.dep": "kernel/drivers/dma-buf/udmabuf.ko.xz:\n"}
BUILD = f"/lib/modules/{RELEASE}/build/Makefile"
OLD = "5.15.0-91-generic"
OLD_KERNEL = {
    "/proc/sys/kernel/osrelease": OLD,
    f"/lib/modules/{OLD}/modules.dep": "kernel/drivers/dma-buf/udmabuf.ko.xz:\n",
}

CASES = (
    Case(
        "module not loaded",
        "kernel-plane",
        "lack",
        "nothing has loaded dmaplane.ko",
        "sudo modprobe dmaplane",
        gone=(DEVICE, LOADED),
    ),
    Case(
        "module not loaded under Secure Boot",
        "kernel-plane",
        "lack",
        "refuses a module it has no key for",
        "sudo mokutil --import /var/lib/dkms/mok.pub",
        files={"/sys/kernel/security/lockdown": "none [integrity] confidentiality"},
        gone=(DEVICE, LOADED),
    ),
    Case(
        "lockdown off",
        "kernel-plane",
        "lack",
        "nothing has loaded dmaplane.ko",
        "sudo modprobe dmaplane",
        files={"/sys/kernel/security/lockdown": "[none] integrity confidentiality"},
        gone=(DEVICE, LOADED),
    ),
    Case(
        "module not installed, headers are there",
        "kernel-plane",
        "lack",
        f"no dmaplane.ko is installed for kernel {RELEASE}",
        "make install-module, as root",
        files={**NOT_INSTALLED, BUILD: ""},
        gone=(DEVICE, LOADED),
    ),
    Case(
        "module not installed, nor headers",
        "kernel-headers",
        "warn",
        f"/lib/modules/{RELEASE}/build is missing",
        f"sudo apt-get install linux-headers-{RELEASE}",
        files=NOT_INSTALLED,
        gone=(DEVICE, LOADED),
        others=("kernel-plane",),
    ),
    Case(
        "no headers on Fedora in a container",
        "kernel-headers",
        "warn",
        "cannot be built here",
        f"dnf install kernel-devel-{RELEASE}  # on the host, as root",
        files={**NOT_INSTALLED, **DOCKER, "/usr/bin/dnf": ""},
        gone=(DEVICE, LOADED),
        others=("kernel-plane",),
    ),
    Case(
        "kernel too old for the module",
        "kernel-plane",
        "lack",
        f"the module needs Linux 6.1; this is {OLD}",
        "Nothing has to be done",
        files=OLD_KERNEL,
        gone=(DEVICE, LOADED),
        others=("kernel-headers",),
    ),
    Case(
        "device of a group this user is not in",
        "kernel-plane",
        "lack",
        "user alice has no read and write right to /dev/dmaplane, which is group dmaplane's",
        "sudo usermod -aG dmaplane alice  # log in again afterwards",
        calls={"closed": (DEVICE,)},
    ),
    Case(
        "device of no group",
        "kernel-plane",
        "lack",
        "which is root's alone",
        "groupadd -f dmaplane && chgrp dmaplane /dev/dmaplane",
        calls={"closed": (DEVICE,), "device_group": None},
    ),
    Case(
        "device in a container whose user may not open it",
        "kernel-plane",
        "lack",
        "no read and write right",
        "docker run --device /dev/dmaplane --group-add",
        files=DOCKER,
        calls={"closed": (DEVICE,)},
    ),
    Case(
        "device not passed into the container",
        "kernel-plane",
        "lack",
        "not visible in this container",
        "docker run --device /dev/dmaplane",
        files=DOCKER,
        gone=(DEVICE,),
    ),
    Case(
        "device node that udev has not made",
        "kernel-plane",
        "lack",
        "udev has not made the device node",
        "sudo udevadm trigger",
        gone=(DEVICE,),
    ),
    Case(
        "module of another contract",
        "kernel-plane",
        "lack",
        "a plane of ABI 2.0",
        "pip install --upgrade dmaplane",
        calls={"kernel": doctor.Trial(False, "a plane of ABI 2.0 is not here", other_abi=True)},
    ),
    Case(
        "module that does not copy",
        "kernel-plane",
        "lack",
        "arrived with other bytes",
        "modprobe -r dmaplane",
        calls={"kernel": doctor.Trial(False, "a copy of 1 MiB arrived with other bytes")},
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_kernel_plane_that_cannot_be_used(tmp_path: pathlib.Path, case: Case) -> None:
    check(tmp_path, case)


def test_a_plane_that_cannot_be_used_is_not_the_one_taken(tmp_path: pathlib.Path) -> None:
    for number, case in enumerate(CASES):
        report = examine(tmp_path / str(number), case)
        assert report.plane == ("embedded" if case.check == "kernel-plane" else report.plane)
        for result in report.checks:
            assert bool(result.cause) == bool(result.fix) == (result.verdict != "ok"), result


def test_trial_tells_another_contract_from_another_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import dmaplane

    def refusing(error: Exception) -> doctor.Trial:
        def refused(**_: object) -> object:
            raise error

        monkeypatch.setattr(dmaplane, "open", refused)
        return _trial.try_plane("kernel")

    older = refusing(dmaplane.UnsupportedError("a plane of ABI 9.0", "a newer package"))
    assert (older.worked, older.other_abi) == (False, True)
    missing = refusing(dmaplane.UnsupportedError("the kernel plane", "the module"))
    assert (missing.worked, missing.other_abi) == (False, False)
    assert "the module" in missing.detail
    broken = refusing(RuntimeError("odd"))
    assert (broken.worked, broken.detail) == (False, "RuntimeError: odd")
