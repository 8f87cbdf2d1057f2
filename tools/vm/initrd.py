# SPDX-License-Identifier: MIT
"""The initrd of a test machine: busybox, guest_init.sh, and what mounts 9p on this kernel.

A cpio archive in the "newc" form, written here since that is thirty lines and saves a tool.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import subprocess
from pathlib import Path

from kernels import Kernel, NoKernelError

INIT = Path(__file__).resolve().parent / "guest_init.sh"
NEEDED = ("virtio_pci", "9pnet_virtio", "9p")


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def _module_files(kernel: Kernel) -> list[Path]:
    """What has to be loaded, in order; nothing for what is built in."""
    order: list[Path] = []
    for name in NEEDED:
        shown = subprocess.run(
            ["modprobe", "-S", kernel.release, "--show-depends", name],
            capture_output=True,
            text=True,
            check=True,
        )
        for line in shown.stdout.splitlines():
            kind, _, path = line.strip().partition(" ")
            if kind == "insmod" and Path(path) not in order:
                order.append(Path(path))
    return order


def write(kernel: Kernel, target: Path) -> None:
    """Writes the initrd of @kernel to @target."""
    busybox = shutil.which("busybox")
    if not busybox:
        raise NoKernelError("no busybox (busybox-static)")
    files = [] if kernel.is_debug else _module_files(kernel)
    order = [path.name.removesuffix(".xz") for path in files]
    parts = [_entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "modules", "proc", "sysroot")]
    parts += [_entry("dev", stat.S_IFDIR | 0o755)]
    parts += [_entry("bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes())]
    parts += [_entry("init", stat.S_IFREG | 0o755, INIT.read_bytes())]
    parts += [_entry("modules/order", stat.S_IFREG | 0o644, "\n".join(order).encode())]
    for path, name in zip(files, order, strict=True):
        data = path.read_bytes()
        data = lzma.decompress(data) if path.suffix == ".xz" else data
        parts += [_entry(f"modules/{name}", stat.S_IFREG | 0o644, data)]
    parts += [_entry("TRAILER!!!", 0)]
    target.write_bytes(b"".join(parts))
