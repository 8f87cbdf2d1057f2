# SPDX-License-Identifier: MIT
"""The machine as doctor sees it: files below a root, and a few system calls.

Every fact a check uses comes through this one object, so that a test can show
doctor a machine that is broken in a known way: a root directory with other
files in it, and a subclass that answers the calls. Reading never raises: what
is not there, or not readable, is None or empty.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
from typing import Final

UNLIMITED: Final = -1

# (mbind, move_pages); the numbers are part of each architecture's kernel ABI.
_NUMA_CALLS: Final = {"x86_64": (237, 279), "aarch64": (235, 239), "riscv64": (235, 239)}

# Runs in a child, so that memory locked by the trial can neither use up nor
# outlive this process's own allowance. Prints the errno, 0 if it was locked.
_LOCK_TRIAL: Final = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None, use_errno=True)
area = mmap.mmap(-1, int(sys.argv[1]))
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
failed = libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(len(area)))
print(ctypes.get_errno() if failed else 0)
"""

# The context of a device costs hundreds of megabytes, and nothing closes the library again.
_CUDA_TRIAL: Final = """
import sys
from dmaplane import DmaplaneError
from dmaplane.stream.cuda._device import describe
try:
    print(describe(0))
except DmaplaneError as error:
    sys.exit(str(error))
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """What came of really trying something."""

    worked: bool
    detail: str
    other_abi: bool = False
    """What is there speaks another version of the contract."""


class Machine:
    """This machine, or (with another root, and in subclasses) a made-up one."""

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.root = pathlib.Path(root)

    # Files.

    def path(self, name: str) -> pathlib.Path:
        """Where @name, an absolute path of the machine, really is."""
        return self.root / name.lstrip("/")

    def exists(self, name: str) -> bool:
        """Is there such a file, whether or not we may read it?"""
        return self.path(name).exists()

    def usable(self, name: str) -> bool:
        """May this user read and write it?"""
        return os.access(self.path(name), os.R_OK | os.W_OK)

    def group_of(self, name: str) -> str | None:
        """The group that may open it, None if that is root's or has no name."""
        import grp

        try:
            found = self.path(name).stat()
            return grp.getgrgid(found.st_gid).gr_name if found.st_gid else None
        except (OSError, KeyError):
            return None

    def text(self, name: str) -> str | None:
        """The whole file without the white space around it."""
        try:
            return self.path(name).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        """The file as one whole number."""
        text = self.text(name)
        try:
            return int(text) if text else None
        except ValueError:
            return None

    def names(self, name: str) -> tuple[str, ...]:
        """What is in a directory, sorted."""
        try:
            return tuple(sorted(entry.name for entry in self.path(name).iterdir()))
        except OSError:
            return ()

    def selected(self, name: str) -> str | None:
        """The word in brackets of a file such as 'always [madvise] never'."""
        text = self.text(name) or ""
        return text.partition("[")[2].partition("]")[0] or None

    def fields(self, name: str) -> dict[str, str]:
        """A file of 'Key: value' lines."""
        lines = (line.partition(":") for line in (self.text(name) or "").splitlines())
        return {key.strip(): value.strip() for key, colon, value in lines if colon}

    def link(self, name: str) -> str | None:
        """Last part of where a symbolic link points."""
        try:
            return os.path.basename(os.readlink(self.path(name)))
        except OSError:
            return None

    # What several checks want to know.

    @property
    def kernel_release(self) -> str:
        return self.text("/proc/sys/kernel/osrelease") or "unknown"

    @property
    def kernel_version(self) -> tuple[int, ...]:
        """(6, 12) of '6.12.3-amd64'; empty if it says nothing of the kind."""
        found = re.match(r"(\d+)\.(\d+)", self.kernel_release)
        return tuple(map(int, found.groups())) if found else ()

    @property
    def memory_bytes(self) -> int:
        return self.meminfo("MemTotal")

    def meminfo(self, key: str) -> int:
        """A line of /proc/meminfo in bytes (or, for counts, as it is); 0 if it is missing."""
        words = self.fields("/proc/meminfo").get(key, "0").split()
        return int(words[0]) * (1024 if words[1:] == ["kB"] else 1)

    def nodes(self) -> tuple[int, ...]:
        """NUMA nodes that are online; (0,) where the kernel shows none."""
        found = sorted(
            int(name[4:])
            for name in self.names("/sys/devices/system/node")
            if name.startswith("node") and name[4:].isdigit()
        )
        return tuple(found) or (0,)

    def module_loaded(self, module: str) -> bool:
        return self.exists(f"/sys/module/{module}")

    def module_installed(self, module: str) -> bool:
        """Is there a file of this module for the running kernel, or is it built in?"""
        folder = f"/lib/modules/{self.kernel_release}"
        listed = (self.text(f"{folder}/modules.dep") or "") + (
            self.text(f"{folder}/modules.builtin") or ""
        )
        wanted = module.replace("-", "_")
        return any(
            os.path.basename(line.partition(":")[0]).partition(".")[0].replace("-", "_") == wanted
            for line in listed.splitlines()
        )

    @property
    def seccomp(self) -> bool:
        """Does a filter decide which system calls this process may make?"""
        return self.fields("/proc/self/status").get("Seccomp", "0") == "2"

    @property
    def container(self) -> str:
        """'docker', 'podman', 'kubernetes', or '' outside of any we can recognise."""
        if "KUBERNETES_SERVICE_HOST=" in (self.text("/proc/self/environ") or ""):
            return "kubernetes"
        if self.exists("/.dockerenv"):
            return "docker"
        if self.exists("/run/.containerenv"):
            return "podman"
        return ""

    @property
    def distribution(self) -> str:
        """PRETTY_NAME of os-release."""
        for line in (self.text("/etc/os-release") or "").splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip("\"'")
        return "unknown"

    def install(self, *, debian: str, fedora: str) -> str:
        """The command that installs a package here."""
        if self.exists("/usr/bin/dnf"):
            return self.as_root(f"dnf install {fedora}")
        return self.as_root(f"apt-get install {debian}")

    def as_root(self, command: str) -> str:
        """@command as this user has to type it."""
        return command if self.user_id() == 0 else f"sudo {command}"

    def on_host(self, command: str) -> str:
        """A command that changes the kernel: inside a container it has to be run outside."""
        return f"{command}  # on the host, as root" if self.container else self.as_root(command)

    # Calls.

    def user_id(self) -> int:
        return os.geteuid()

    def user_name(self) -> str:
        """The name, or the number of a user who has none."""
        import pwd

        try:
            return pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            return str(os.geteuid())

    def architecture(self) -> str:
        return platform.machine()

    def cpus(self) -> int:
        return len(os.sched_getaffinity(0))

    def python_version(self) -> tuple[int, int, int]:
        return sys.version_info[:3]

    def package_version(self, package: str) -> str | None:
        """Version of an installed Python package."""
        import importlib.metadata

        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def open_library(self, name: str) -> str:
        """Why a shared library cannot be opened; nothing if it can."""
        try:
            ctypes.CDLL(name)
        except OSError as error:
            return str(error)
        return ""

    def verbs_missing(self) -> str:
        """What the embedded plane itself lacks for RDMA: "missing-...: what; what mends it"."""
        from dmaplane import _library
        from dmaplane._errors import UnsupportedError

        try:
            return _library.verbs_missing()
        except UnsupportedError as error:
            return f"missing-library: {error}; see the check embedded"

    def try_cuda(self) -> Trial:
        """Opens the first cuda device in a child, which takes its context with it."""
        try:
            answer = subprocess.run(
                [sys.executable, "-c", _CUDA_TRIAL],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Trial(False, "the driver did not answer within 60 seconds")
        told = (answer.stdout.strip() or answer.stderr.strip()).splitlines()[-1:]
        return Trial(
            answer.returncode == 0, told[0][:400] if told else f"it ended with {answer.returncode}"
        )

    def memlock_limit_bytes(self) -> int:
        """Soft limit, UNLIMITED if there is none."""
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        return UNLIMITED if limit == resource.RLIM_INFINITY else limit

    def open_files_limit(self) -> tuple[int, int]:
        """Soft and hard limit of file descriptors."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    def filesystem_bytes(self, name: str) -> tuple[int, int]:
        """Size of the file system at @name and what is free of it; (0, 0) if there is none."""
        try:
            answer = os.statvfs(self.path(name))
        except OSError:
            return 0, 0
        return answer.f_blocks * answer.f_frsize, answer.f_bavail * answer.f_frsize

    def lock_memory(self, length_bytes: int) -> int:
        """Locks that much memory in a child; the errno, 0 if it worked."""
        answer = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LOCK_TRIAL, str(length_bytes)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # A child that was killed while it locked met the memory limit of its cgroup.
        return int(answer.stdout) if answer.returncode == 0 else errno.ENOMEM

    def place_memory(self) -> tuple[int, int] | None:
        """errnos of mbind and move_pages on one page of our own; None: cannot be tried here."""
        if self.architecture() not in _NUMA_CALLS:
            return None
        return _place_one_page(*_NUMA_CALLS[self.architecture()], node=self.nodes()[0])

    def try_embedded(self) -> Trial:
        """Opens an embedded plane and copies 1 MiB through a channel, with checksum."""
        from dmaplane.doctor._trial import try_plane

        return try_plane("embedded")

    def try_kernel(self) -> Trial:
        """The same on the kernel plane."""
        from dmaplane.doctor._trial import try_plane

        return try_plane("kernel")


def _place_one_page(mbind: int, move_pages: int, *, node: int) -> tuple[int, int]:
    import mmap

    bind_policy = 2
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    # Anonymous memory of our own: whatever the calls do to it goes with it.
    with mmap.mmap(-1, mmap.PAGESIZE) as area:
        area[0] = 1
        byte = ctypes.c_char.from_buffer(area)
        start = ctypes.addressof(byte)
        mask = ctypes.c_ulong(1 << node)
        bound = libc.syscall(
            ctypes.c_long(mbind),
            ctypes.c_void_p(start),
            ctypes.c_ulong(mmap.PAGESIZE),
            ctypes.c_int(bind_policy),
            ctypes.byref(mask),
            ctypes.c_ulong(65),
            ctypes.c_uint(0),
        )
        bind_errno = ctypes.get_errno() if bound else 0
        pages = (ctypes.c_void_p * 1)(start)
        status = ctypes.c_int(-1)
        asked = libc.syscall(
            ctypes.c_long(move_pages),
            ctypes.c_int(0),
            ctypes.c_ulong(1),
            pages,
            None,
            ctypes.byref(status),
            ctypes.c_int(0),
        )
        move_errno = ctypes.get_errno() if asked else max(0, -status.value)
        del byte
    return bind_errno, move_errno
