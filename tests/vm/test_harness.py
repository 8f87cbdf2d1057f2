# SPDX-License-Identifier: MIT
"""The harness of virtual machines counts right, and takes nothing bad for good."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools/vm"), str(ROOT / "tools/kernel")]

import build  # noqa: E402 (the harness is not a package)
import checkpatch  # noqa: E402
import initrd  # noqa: E402
import kernels  # noqa: E402
import kmsg  # noqa: E402
import machine  # noqa: E402
import vmtest  # noqa: E402

SPLATS = [
    "WARNING: CPU: 0 PID: 181 at kernel/dmaplane.c:8 op+0x53/0x60 [dmaplane]",
    "BUG: KASAN: slab-out-of-bounds in dmp_a+0x1/0x2 [dmaplane]",
    "BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "BUG: sleeping function called from invalid context at mm/a.c:1",
    "Oops: 0002 [#1] PREEMPT SMP PTI",
    "WARNING: possible circular locking dependency detected",
    "WARNING: inconsistent lock state",
    "WARNING: suspicious RCU usage",
    "general protection fault, probably for non-canonical address",
    "UBSAN: shift-out-of-bounds in a.c:1:2",
    "refcount_t: underflow; use-after-free.",
    "list_del corruption. prev->next should be",
    "DMA-API: dmaplane: device driver frees DMA memory with different size",
    "DMA-API: dmaplane: device driver failed to check map error [map] mapping error",
    "INFO: task python:87 blocked for more than 120 seconds.",
    "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks",
    "watchdog: BUG: soft lockup - CPU#0 stuck for 26s!",
    "ODEBUG: free active (active state 0) object type: work_struct",
    "Kernel panic - not syncing: Fatal exception",
]
HARMLESS = [
    "dmaplane: loading out-of-tree module taints kernel.",
    "dmaplane: module verification failed: signature and/or required key missing",
    "kasan: KernelAddressSanitizer initialized",
    "kmemleak: Kernel memory leak detector initialized (mem pool available: 39000)",
    "DMA-API: preallocated 65536 debug entries",
    "rcu: \tRCU debug extended QS entry/exit.",
    "dmaplane-test: test_list_del_corruption_is_found",
]


@pytest.mark.parametrize("line", SPLATS)
def test_a_complaint_of_the_kernel_is_found(line: str) -> None:
    assert kmsg.is_splat(line)


@pytest.mark.parametrize("line", HARMLESS)
def test_what_every_run_says_is_no_complaint(line: str) -> None:
    assert not kmsg.is_splat(line)


GOOD = "== 4 passed, 1 skipped, 77 deselected in 46.70s ==\n"


@pytest.mark.parametrize(
    ("output", "ending", "built", "line"),
    [
        (GOOD, machine.Ending(0, "", ()), True, "4 passed, 0 failed, 1 skipped"),
        (GOOD, machine.Ending(0, "", ()), False, "4 passed, 1 failed, 1 skipped"),
        (GOOD, machine.Ending(139, "", ()), True, "4 passed, 1 failed, 1 skipped"),
        (GOOD, machine.Ending(0, "", ("WARNING: a",)), True, "4 passed, 1 failed, 1 skipped"),
        (GOOD, machine.Ending(255, "panicked", ()), True, "4 passed, 1 failed, 1 skipped"),
        ("a PASSED\nb PASSED\nc ", machine.Ending(255, "panicked", ()), True,
         "2 passed, 1 failed, 0 skipped"),
        ("", machine.Ending(0, "", ()), True, "0 passed, 1 failed, 0 skipped"),
        ("== 3 deselected in 1.00s ==\n", machine.Ending(5, "", ()), True,
         "0 passed, 1 failed, 0 skipped"),
        ("== 2 failed, 5 passed, 3 errors in 83.03s (0:01:23) ==\n", machine.Ending(1, "", ()),
         True, "5 passed, 5 failed, 0 skipped"),
    ],
)  # fmt: skip
def test_the_closing_line_counts_what_went_wrong(
    output: str, ending: machine.Ending, built: bool, line: str
) -> None:
    assert vmtest.closing_line(output, ending, built=built) == line


def test_a_mirror_follows_its_source_and_keeps_what_is_equal(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    (source / "in").mkdir(parents=True)
    (source / "in/kept.c").write_text("1")
    (source / "gone.c").write_text("2")
    build.mirror(source, target)
    (target / "in/kept.o").write_text("object")
    os.utime(target / "in/kept.c", (1, 1))
    (source / "gone.c").unlink()
    (source / "new.h").write_text("3")
    build.mirror(source, target)
    left = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    assert left == ["in/kept.c", "in/kept.o", "new.h"]
    assert (target / "in/kept.c").stat().st_mtime == 1


needs_busybox = pytest.mark.skipif(
    not shutil.which("busybox"), reason="missing-tool: busybox (tools/setup.sh test installs it)"
)


@needs_busybox
def test_the_initrd_is_an_archive_others_can_read(tmp_path: Path) -> None:
    kernel = kernels.Kernel("any", "0", tmp_path, tmp_path, tmp_path, is_debug=True)
    initrd.write(kernel, tmp_path / "initrd")
    (tmp_path / "out").mkdir()
    with (tmp_path / "initrd").open("rb") as archive:
        command = ["busybox", "cpio", "-idm"]
        subprocess.run(command, stdin=archive, cwd=tmp_path / "out", check=True)
    assert (tmp_path / "out/init").read_bytes() == initrd.INIT.read_bytes()
    assert os.access(tmp_path / "out/bin/busybox", os.X_OK)
    assert (tmp_path / "out/sysroot").is_dir()


def test_a_kernel_that_is_not_there_is_named() -> None:
    with pytest.raises(kernels.NoKernelError, match=r"no kernel 2\.4"):
        kernels.installed("2.4")


@pytest.mark.skipif(
    not shutil.which("perl") or not checkpatch.find(),
    reason="missing-tool: checkpatch.pl (linux-source-6.12)",
)
def test_checkpatch_remarks_are_failures(tmp_path: Path) -> None:
    script = checkpatch.find()
    assert script
    good, bad = tmp_path / "good.c", tmp_path / "bad.c"
    good.write_text("// SPDX-License-Identifier: GPL-2.0\nint dmp_a;\n")
    bad.write_text("// SPDX-License-Identifier: GPL-2.0\nint dmp_a(){return 1;}\n")
    assert checkpatch.check(script, good)
    assert not checkpatch.check(script, bad)


def test_an_expected_complaint_is_none_and_every_other_is_one(tmp_path: Path) -> None:
    kernel = kernels.Kernel("any", "0", tmp_path, tmp_path, tmp_path)
    lines = ["[    1.5] WARNING: at a.c:1", "[    1.6] WARNING: at b.c:2", "[    1.7] fine"]
    (tmp_path / "serial.log").write_text("\n".join(lines))
    (tmp_path / "status").write_text("0\n")
    ending = machine.Machine(kernel)._ending(tmp_path, in_time=True, timeout_s=1)
    assert ending == machine.Ending(0, "", (lines[0], lines[1]))
    (tmp_path / "expected").write_text("WARNING: at a.c:1\n")
    ending = machine.Machine(kernel)._ending(tmp_path, in_time=True, timeout_s=1)
    assert ending == machine.Ending(0, "", (lines[1],))


def test_a_machine_that_says_nothing_has_failed(tmp_path: Path) -> None:
    box = machine.Machine(kernels.Kernel("any", "0", tmp_path, tmp_path, tmp_path))
    (tmp_path / "qemu.log").write_text("no such device\n")
    ending = box._ending(tmp_path, in_time=True, timeout_s=1)
    assert ending.status == machine.NO_STATUS
    assert "no such device" in ending.why
    (tmp_path / "serial.log").write_text("[ 9.0] Kernel panic - not syncing: Fatal exception\n")
    assert "panicked" in box._ending(tmp_path, in_time=True, timeout_s=1).why
    assert "stopped" in box._ending(tmp_path, in_time=False, timeout_s=1).why
