#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Boots a kernel and runs tests/kernel in it; the last line is "N passed, N failed, N skipped".

  tools/vm/vmtest.py [--kernel 6.12|6.1|debug] [-k NAME]
  tools/vm/vmtest.py --run 'uname -a'           any command in the same machine
  tools/vm/vmtest.py --pair [...]               tests/pair: two machines, pytest on the host

Builds the module and what the tests use, puts them into a new folder build/vm/RUN, which
the guest has at /mnt, and keeps there what came out: output, serial.log.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernel"))

import build
import kernels
import machine

TREE = kernels.TREE
RUNS = TREE / "build/vm"
RUNS_KEPT = 10
LOG_TAIL_LINES = 40
FAILURES_MAX = 8
"""Of a pair: the rest of its tests would each wait a minute for a machine that is ill."""
TIMEOUT_S = {"6.12": 1700, "6.1": 1700, "debug": 5400}


def programs(target: Path) -> bool:
    """Builds the C programs of tests/kernel (its programs.cmake) and copies them to @target.

    False if some do not build; the others are there all the same.
    """
    good = True
    home = TREE / "build/gcc"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = ["cmake", "-S", str(TREE), "-B", str(home), "-DCMAKE_C_COMPILER=gcc"]
        make = ["cmake", "--build", str(home), "--target", "kernel_programs", "-j", "2"]
        make += ["--", "-k0" if (home / "build.ninja").exists() else "-k"]
        for command in (configure, make):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stdout[-4000:], done.stderr[-4000:])
                print("vmtest: not every program of tests/kernel builds")
                good = False
        built = home / "kernel-programs"
        shutil.copytree(built, target) if built.exists() else target.mkdir()
    return good


def run_folder(name: str) -> Path:
    """A new folder for a run; the oldest finished ones go."""
    RUNS.mkdir(parents=True, exist_ok=True)
    old = sorted(RUNS.glob("*/finished"), key=lambda path: path.stat().st_mtime)
    for path in old[:-RUNS_KEPT]:
        shutil.rmtree(path.parent, ignore_errors=True)
    stamp = time.strftime("%H%M%S")
    return Path(tempfile.mkdtemp(prefix=f"{name}-{stamp}-", dir=RUNS))


def pytest_words(arguments: argparse.Namespace, tests: str) -> list[str]:
    words = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    words += ["--continue-on-collection-errors", "--durations=12", tests]
    if arguments.name:
        words += ["-k", arguments.name]
    if arguments.kernel == "debug":
        words += ["-o", "timeout=1200"]
    return words


def pytest_command(arguments: argparse.Namespace) -> str:
    words = pytest_words(arguments, "tests/kernel")
    settings = {
        "CI": os.environ.get("CI", ""),
        "DMAPLANE_VM": "/mnt",
        "DMAPLANE_MODULE_PARAMETERS": arguments.parameters,
        "HYPOTHESIS_STORAGE_DIRECTORY": "/run/hypothesis",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": "/mnt/site",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "100",
    }
    # How long and how often, and which seed: DMAPLANE_KILLS, DMAPLANE_RANDOM_SECONDS, ...
    chosen = {name: text for name, text in os.environ.items() if name.startswith("DMAPLANE_")}
    settings = chosen | settings
    exports = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    return "\n".join([*exports, f"exec {shlex.join(words)}"])


def closing_line(output: str, ending: machine.Ending, *, built: bool) -> str:
    """What pytest counted; whatever went wrong around it is at least one failure."""
    counts: dict[str, int] = {}
    found = re.findall(r"^=+ (.*\d+ \w+.*) in [\d.]+s.* =+$", output, re.MULTILINE)
    if found:
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", found[-1])}
    else:
        counts["passed"] = len(re.findall(r" PASSED\b", output))
        counts["failed"] = len(re.findall(r" FAILED\b", output))
    passed = counts.get("passed", 0) + counts.get("xfailed", 0)
    failed = sum(counts.get(word, 0) for word in ("failed", "error", "errors", "xpassed"))
    if not failed and (not found or not passed or ending.status or ending.splats):
        failed = 1
    failed += not built
    return f"{passed} passed, {failed} failed, {counts.get('skipped', 0)} skipped"


def explain(folder: Path, ending: machine.Ending) -> None:
    shown = folder.relative_to(TREE)
    if ending.why:
        print(f"vmtest: {ending.why}; the end of {shown}/serial.log:")
        text = (folder / "serial.log").read_text(errors="replace") if ending.why else ""
        print("\n".join(text.splitlines()[-LOG_TAIL_LINES:]))
    for line in ending.splats[:LOG_TAIL_LINES]:
        print(f"vmtest: kernel log: {line}")
    print(f"vmtest: the run is in {shown}/")


def pairtest(arguments: argparse.Namespace) -> int:
    """tests/pair: its conftest.py boots both machines in the run's folder."""
    kernel = kernels.find(arguments.kernel)
    folder = run_folder(f"pair-{kernel.name}")
    for path in build.build(kernel):
        shutil.copyfile(path, folder / path.name)
    settings = {"DMAPLANE_PAIR": str(folder), "DMAPLANE_PAIR_KERNEL": kernel.name}
    settings |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "100"}
    words = [*pytest_words(arguments, "tests/pair"), f"--maxfail={FAILURES_MAX}"]
    print(f"vmtest: two of {kernel.release}, {shlex.quote(str(folder.name))}", flush=True)
    output = ""
    with (
        (folder / "output").open("w") as kept,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *words],
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as tests,
    ):
        assert tests.stdout
        for line in tests.stdout:
            print(line, end="", flush=True)
            kept.write(line)
            output += line
    (folder / "finished").touch()
    print(f"vmtest: the run is in {folder.relative_to(TREE)}/")
    line = closing_line(output, machine.Ending(tests.returncode, "", ()), built=True)
    print(line)
    return 0 if ", 0 failed" in line else 1


def vmtest(arguments: argparse.Namespace) -> int:
    kernel = kernels.find(arguments.kernel)
    append = list(arguments.append)
    if kernel.is_debug:
        append += ["kasan_multi_shot"]
        # Doubles the time to boot, so a single test goes without.
        append += [] if arguments.name or arguments.run else ["kmemleak=on"]
    box = machine.Machine(
        kernel,
        memory_mib=arguments.memory,
        nodes=arguments.nodes,
        append=tuple(append),
        ivshmem=True,
        nvme_cmb_mib=16 if kernel.is_debug else 0,
        devices=tuple(shlex.split(arguments.qemu)),
    )
    folder = run_folder(kernel.name)
    for path in build.build(kernel):
        shutil.copyfile(path, folder / path.name)
    built = programs(folder / "programs")
    try:
        for path in build.build_standins(kernel):
            shutil.copyfile(path, folder / path.name)
    except build.BuildError as error:
        print(f"vmtest: {error}")
        built = False
    timeout_s = arguments.timeout or TIMEOUT_S[kernel.name]
    print(f"vmtest: booting {kernel.release}, {shlex.quote(str(folder.name))}", flush=True)
    ending = box.run(arguments.run or pytest_command(arguments), folder, timeout_s)
    for name in ("initrd", "ivshmem", "nvme"):
        (folder / name).unlink(missing_ok=True)
    for name in ("tree", "site"):
        shutil.rmtree(folder / name)
    (folder / "finished").touch()
    explain(folder, ending)
    if arguments.run:
        return ending.status
    line = closing_line((folder / "output").read_text(errors="replace"), ending, built=built)
    print(line)
    return 0 if ", 0 failed" in line else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="run tests/kernel in a virtual machine")
    parser.add_argument("--kernel", choices=kernels.NAMES, default="6.12")
    parser.add_argument("-k", dest="name", default="", help="only tests whose name contains this")
    parser.add_argument("--pair", action="store_true", help="tests/pair, in two machines")
    parser.add_argument("--run", help="a shell command instead of the tests")
    parser.add_argument("--memory", type=int, default=2048, help="MiB")
    parser.add_argument("--nodes", type=int, default=2, help="NUMA nodes, a CPU on each")
    parser.add_argument("--parameters", default="", help="of the module, as for modprobe")
    parser.add_argument("--append", action="append", default=[], help="for the kernel; repeats")
    parser.add_argument("--qemu", default="", help="more words for QEMU")
    parser.add_argument("--timeout", type=float, help="seconds")
    arguments = parser.parse_args()
    try:
        return pairtest(arguments) if arguments.pair else vmtest(arguments)
    except (kernels.NoKernelError, build.BuildError) as error:
        print(f"vmtest: {error}")
        print("0 passed, 1 failed, 0 skipped")
        return 1
    except KeyboardInterrupt:
        print("vmtest: stopped")
        return 130


if __name__ == "__main__":
    os.chdir(TREE)
    sys.exit(main())
