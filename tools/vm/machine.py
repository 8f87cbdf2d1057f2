# SPDX-License-Identifier: MIT
"""One virtual machine: a kernel, the host's root read-only, and a folder both sides write.

The guest runs one command and switches off. Its output is shown as it comes; its exit
status is the machine's. A machine that ends without one has panicked or was stopped; the
kernel's log stays in serial.log of the folder. QEMU is our child and dies with us,
whatever ends us.
"""

from __future__ import annotations

import compileall
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import initrd
import kmsg
from kernels import TREE, Kernel

IVSHMEM_BYTES = 64 << 20
SILENCE_S = 5
POLL_S = 0.1
NO_STATUS = 255
# A kernel patches its own code while it boots, and an emulated second CPU may run into it:
# a panic of the stock kernel in its first seconds, before anything of ours is there.
BOOTS_MAX = 3
# What of the tree no test needs.
NOT_COPIED = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "shared")


def snapshot(folder: Path) -> None:
    """Copies the tree, and the package installed in its .venv, for the guest.

    So a run sees one state of both, whoever edits or installs meanwhile.
    """
    ignored = shutil.ignore_patterns(*NOT_COPIED)
    shutil.copytree(TREE, folder / "tree", symlinks=True, ignore=ignored)
    (folder / "tree/.venv").mkdir()
    (folder / "tree.path").write_text(str(TREE))
    (folder / "site").mkdir()
    for path in TREE.glob(".venv/lib/python*/site-packages/dmaplane*"):
        shutil.copytree(path, folder / "site" / path.name)
    # Compiling takes the guest ten times as long.
    tested = [folder / "tree/tests" / name for name in ("kernel", "endpoint", "pair")]
    for path in (folder / "site", folder / "tree/tools", *tested):
        compileall.compile_dir(path, quiet=2)


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a machine ended: the command's exit status, and what the kernel had to say."""

    status: int
    why: str  # nothing if the command ended by itself
    splats: tuple[str, ...]  # but for the lines of FOLDER/expected


def splats(folder: Path, log: str) -> tuple[str, ...]:
    """What of a kernel's @log is a complaint, but for the lines of FOLDER/expected."""
    told = folder / "expected"
    expected = told.read_text(errors="replace").splitlines() if told.exists() else []
    return tuple(
        line
        for line in log.splitlines()
        if kmsg.is_splat(line) and not line.endswith(tuple(expected))
    )


@dataclasses.dataclass(frozen=True)
class Machine:
    """What is in the machine. With two nodes it has two CPUs, one on each."""

    kernel: Kernel
    memory_mib: int = 2048
    cpus: int = 2
    nodes: int = 2
    append: tuple[str, ...] = ()
    ivshmem: bool = False  # FOLDER/ivshmem as BAR 2 of a PCI device 1af4:1110
    nvme_cmb_mib: int = 0  # an NVMe disk with a controller memory buffer
    devices: tuple[str, ...] = ()  # more words for QEMU

    def _processors(self) -> list[str]:
        if self.nodes == 1:
            return ["-smp", str(self.cpus), "-m", f"{self.memory_mib}M"]
        # A socket a node: a cache shared by nodes is what the scheduler warns about.
        topology = f"{self.nodes},sockets={self.nodes},cores=1,threads=1"
        words = ["-smp", topology, "-m", f"{self.memory_mib}M"]
        for node in range(self.nodes):
            size = f"{self.memory_mib // self.nodes}M"
            words += ["-object", f"memory-backend-ram,id=ram{node},size={size}"]
            words += ["-numa", f"node,nodeid={node},cpus={node},memdev=ram{node}"]
        return words

    def _pci(self, folder: Path) -> list[str]:
        words = []
        if self.ivshmem:
            path = folder / "ivshmem"
            with path.open("wb") as made:
                made.truncate(IVSHMEM_BYTES)
            backend = f"memory-backend-file,id=iv,share=on,mem-path={path},size={IVSHMEM_BYTES}"
            words += ["-object", backend, "-device", "ivshmem-plain,memdev=iv"]
        if self.nvme_cmb_mib:
            disk = folder / "nvme"
            with disk.open("wb") as made:
                made.truncate(16 << 20)
            words += ["-drive", f"if=none,id=nvme,file={disk},format=raw"]
            words += ["-device", f"nvme,serial=1,drive=nvme,cmb_size_mb={self.nvme_cmb_mib}"]
        return [*words, *self.devices]

    def command_line(self, folder: Path) -> list[str]:
        """The words that start QEMU; @folder is what the guest has at /mnt."""
        nine = "security_model=none,multidevs=remap"
        append = ["console=ttyS0", "loglevel=7", "panic=-1", "oops=panic", *self.append]
        return [
            *("setpriv", "--pdeathsig", "KILL"),
            "qemu-system-x86_64",
            # Stock guests hang on this kind of nested KVM; Nehalem is the cheapest model
            # to emulate that numpy still runs on.
            *("-machine", "q35", "-cpu", "Nehalem", "-accel", "tcg,thread=multi"),
            *self._processors(),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", f"file:{folder / 'serial.log'}"),
            *("-fsdev", f"local,id=root,path=/,readonly=on,{nine}"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
            *("-fsdev", f"local,id=share,path={folder},{nine}"),
            *("-device", "virtio-9p-pci,fsdev=share,mount_tag=share"),
            *self._pci(folder),
            *("-kernel", str(self.kernel.image), "-initrd", str(folder / "initrd")),
            *("-append", " ".join(append)),
        ]

    def prepare(self, command: str, folder: Path) -> None:
        """Puts into @folder what start() needs: command, init, the tree, the initrd."""
        (folder / "command").write_text(command + "\n")
        (folder / "guest_init.sh").write_bytes(initrd.INIT.read_bytes())
        snapshot(folder)
        (folder / "output").touch()
        if self.kernel.is_debug:
            (folder / "modules").symlink_to(self.kernel.modules)
        initrd.write(self.kernel, folder / "initrd")

    def start(self, folder: Path, fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        """Starts QEMU in a folder that is prepared; it inherits @fds, which `devices` name."""
        with (folder / "qemu.log").open("wb") as log:
            return subprocess.Popen(
                self.command_line(folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=fds,
                cwd=folder,  # a path of a socket has room for 107 bytes: it may be relative
            )

    def run(self, command: str, folder: Path, timeout_s: float) -> Ending:
        """Boots, runs the shell @command in the tree, shows its output, waits for the end.

        @folder: empty; holds the run: what goes in is at /mnt, what comes out stays.
        """
        self.prepare(command, folder)
        for boot in range(1, BOOTS_MAX + 1):
            in_time = self._boot(folder, timeout_s)
            if not in_time or boot == BOOTS_MAX or (folder / "started").exists():
                break
            print(f"    vm: ended while it booted; its log is serial.{boot}.log, again", flush=True)
            serial = folder / "serial.log"
            if serial.exists():
                serial.rename(folder / f"serial.{boot}.log")
        return self._ending(folder, in_time, timeout_s)

    def _boot(self, folder: Path, timeout_s: float) -> bool:
        """Runs QEMU to its end, or stops it: did it end by itself?"""
        process = self.start(folder)
        try:
            with (folder / "output").open("rb") as output:
                return _follow(process, output, timeout_s)
        finally:
            process.kill()
            process.wait()

    def _ending(self, folder: Path, in_time: bool, timeout_s: float) -> Ending:
        serial = folder / "serial.log"
        text = serial.read_text(errors="replace") if serial.exists() else ""
        found = splats(folder, text)
        try:
            return Ending(int((folder / "status").read_text()), "", found)
        except (OSError, ValueError):
            pass
        if not in_time:
            return Ending(NO_STATUS, f"stopped after {timeout_s:.0f} s", found)
        if "Kernel panic" in text:
            return Ending(NO_STATUS, "the kernel panicked", found)
        said = (folder / "qemu.log").read_text(errors="replace").strip()
        return Ending(NO_STATUS, f"QEMU ended without a status: {said}", found)


def _follow(process: subprocess.Popen[bytes], output: BinaryIO, timeout_s: float) -> bool:
    """Shows @output until the process ends (true) or its time is up (false)."""
    start = time.monotonic()
    spoke = start
    in_line = False
    while True:
        ended = process.poll() is not None
        data = output.read()
        now = time.monotonic()
        if data:
            spoke = now
            os.write(sys.stdout.fileno(), data)
            in_line = not data.endswith(b"\n")
        if ended:
            return True
        if now - start > timeout_s:
            return False
        if now - spoke > SILENCE_S:
            spoke = now
            print("\n" * in_line + f"    vm: {now - start:.0f} s", flush=True)
            in_line = False
        time.sleep(POLL_S)
