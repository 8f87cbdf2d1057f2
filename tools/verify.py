#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs every check and test of the tree in order and prints one total.

Called by `make test` in the environment that tools/setup.sh made. A stage is a
list of commands; its output goes to build/log/STAGE.log, its result to one line
here. A failed stage does not stop the ones after it. The last line is

  N passed, N failed            (or: N passed, N failed, N skipped)

A tool that is missing is a typed skip, and a failure where CI=true, since CI can
install every one of them. Long stages print a sign of life.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
LOGS = BUILD / "log"
HEARTBEAT_S = 30
STAGE_LIMIT_S = 2400
LOG_TAIL_LINES = 60
FAILURE_WIDTH = 300
FAILURES_SHOWN = 8
IN_CI = os.environ.get("CI") == "true"

SIMULATOR_SEEDS = 10_000
SIMULATOR_STEPS = 1_000
FUZZ_COMMANDS = 10_000_000
FUZZ_RING_WRITES = 1_000_000
SOAK_KILLS = 1_000
WIRE_FRAMES = 1_000_000
ENDPOINT_KILLS = 1_000


@dataclass
class Tally:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.reasons += other.reasons
        self.failures += other.failures

    def __str__(self) -> str:
        text = f"{self.passed} passed, {self.failed} failed"
        return f"{text}, {self.skipped} skipped" if self.skipped else text


@dataclass(frozen=True)
class Step:
    """One command of a stage; count reads its output, or None: it is one check or none."""

    command: Sequence[object]  # words; each is made a string
    count: Callable[[str], Tally | None] | None = None
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Stage:
    name: str
    steps: Callable[[argparse.Namespace], list[Step]]
    tools: tuple[str, ...] = ()
    applies: Callable[[], str] = lambda: ""  # why it does not apply here, or nothing
    lacks: Callable[[], str] = lambda: ""  # what is missing that is no tool, or nothing


# ---- how results are read


def ctest_tally(output: str) -> Tally | None:
    found = re.search(r"(\d+)% tests passed, (\d+) tests failed out of (\d+)", output)
    if not found:
        return None
    failed, total = int(found[2]), int(found[3])
    return Tally(passed=total - failed, failed=failed)


def pytest_tally(output: str) -> Tally | None:
    closing = [line for line in output.splitlines() if re.search(r"\bin \d[\d.]*s\b", line)]
    if not closing:
        return None
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", closing[-1])}
    reasons = re.findall(r"^SKIPPED \[\d+\] (.*)$", output, re.MULTILINE)
    return Tally(
        passed=counts.get("passed", 0) + counts.get("xfailed", 0),
        failed=sum(counts.get(word, 0) for word in ("failed", "error", "errors", "xpassed")),
        skipped=counts.get("skipped", 0),
        reasons=reasons,
    )


def plain_tally(output: str) -> Tally | None:
    pattern = r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$"
    found = re.findall(pattern, output, re.MULTILINE)
    if not found:
        return None
    passed, failed, skipped = (int(number or 0) for number in found[-1])
    reasons = re.findall(r"^SKIPPED \[\d+\] (.*)$", output, re.MULTILINE)
    return Tally(passed, failed, skipped, reasons)


FAILURES = (
    r"^(?:FAILED|ERROR) (\S+::.*)$",  # pytest, at its end
    r"^(\S+::\S+ (?:FAILED|ERROR))\b",  # pytest, as it goes: an end may never come
    r"^\s+\d+ - (\S+ \((?:Failed|Timeout|SEGFAULT|.*Exception.*)\))",  # ctest
    r"^(\S+: (?:CHECK|WARNING|ERROR):.*)$",  # checkpatch
    r"^vmtest: (kernel log: .*|.*; the end of .*)$",
    r"^(ended after \d+ s)$",  # STAGE_LIMIT_S
)


def failures(output: str) -> list[str]:
    """The lines that name what failed."""
    lines = [line for pattern in FAILURES for line in re.findall(pattern, output, re.MULTILINE)]
    return [line[:FAILURE_WIDTH] for line in lines[:FAILURES_SHOWN]]


# ---- how stages are built


def generator() -> list[str]:
    return ["-G", "Ninja"] if shutil.which("ninja") else []


def jobs() -> str:
    return str(min(os.cpu_count() or 1, 4))


def build(name: str, *options: str, targets: Sequence[str] = ()) -> list[Step]:
    directory = BUILD / name
    configure = ["cmake", "-S", ROOT, "-B", directory, *options]
    if not (directory / "CMakeCache.txt").exists():
        configure += generator()
    make: list[object] = ["cmake", "--build", directory, "-j", jobs()]
    if targets:
        make += ["--target", *targets]
    return [Step(configure), Step(make)]


def ctest(name: str, *options: str, prefix: Sequence[str] = (), **environment: str) -> Step:
    command = [*prefix, "ctest", "--test-dir", str(BUILD / name), "--output-on-failure"]
    command += ["--no-tests=error", "-j", jobs(), *options]
    return Step(command, ctest_tally, tuple(environment.items()))


SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


def gcc_stage(_: argparse.Namespace) -> list[Step]:
    return [*build("gcc", "-DCMAKE_C_COMPILER=gcc"), ctest("gcc")]


def clang_stage(_: argparse.Namespace) -> list[Step]:
    return [*build("clang", "-DCMAKE_C_COMPILER=clang"), ctest("clang", "-L", "core|embedded")]


def asan_build(*targets: str) -> list[Step]:
    options = ("-DCMAKE_C_COMPILER=gcc", "-DDMP_SANITIZE=address,undefined")
    return build("asan", *options, targets=targets)


def asan_stage(_: argparse.Namespace) -> list[Step]:
    return [*asan_build(), ctest("asan", **SANITIZER_OPTIONS)]


def tsan_stage(_: argparse.Namespace) -> list[Step]:
    steps = build("tsan", "-DCMAKE_C_COMPILER=gcc", "-DDMP_SANITIZE=thread")
    # The runtime of TSan cannot place its shadow where the kernel randomises widely.
    prefix = ("setarch", platform.machine(), "-R")
    return [*steps, ctest("tsan", "-LE", "soak", prefix=prefix, **SANITIZER_OPTIONS)]


def aarch64_stage(_: argparse.Namespace) -> list[Step]:
    options = (
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
        "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu",
    )
    return [*build("aarch64", *options), ctest("aarch64", "-L", "core")]


def python(*arguments: str | Path) -> list[object]:
    return [sys.executable, *arguments]


def tidy_stage(_: argparse.Namespace) -> list[Step]:
    return [Step(python("tools/tidy.py"), plain_tally)]


def mypy_stage(_: argparse.Namespace) -> list[Step]:
    return [Step(python("-m", "mypy"), one_check)]


def ruff_stage(_: argparse.Namespace) -> list[Step]:
    return [
        Step(python("-m", "ruff", "check", "."), one_check),
        Step(python("-m", "ruff", "format", "--check", "."), one_check),
    ]


def pytest_stage(_: argparse.Namespace) -> list[Step]:
    return [Step(python("-m", "pytest", "-p", "no:cacheprovider"), pytest_tally)]


def simulator_stage(arguments: argparse.Namespace) -> list[Step]:
    first = arguments.seed if arguments.seed is not None else 1
    command = [BUILD / "gcc/simulate", "--seeds", str(SIMULATOR_SEEDS)]
    command += ["--steps", str(SIMULATOR_STEPS), "--first", str(first)]
    steps = build("gcc", "-DCMAKE_C_COMPILER=gcc", targets=["simulate"])
    return [*steps, Step(command, one_check)]


def fuzz_stage(arguments: argparse.Namespace) -> list[Step]:
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    command = [BUILD / "asan/fuzz", "--seed", str(seed), "--commands", str(FUZZ_COMMANDS)]
    command += ["--ring-writes", str(FUZZ_RING_WRITES)]
    step = Step(command, one_check, tuple(SANITIZER_OPTIONS.items()))
    return [*asan_build("fuzz"), step]


def fuzz_wire_stage(arguments: argparse.Namespace) -> list[Step]:
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    command = [BUILD / "asan/fuzz_wire", "--seed", str(seed), "--frames", str(WIRE_FRAMES)]
    step = Step(command, one_check, tuple(SANITIZER_OPTIONS.items()))
    return [*asan_build("fuzz_wire"), step]


def restarts_stage(_: argparse.Namespace) -> list[Step]:
    """Peers killed and restarted so often; `pytest` has a shorter run of the same tests."""
    command = python("-m", "pytest", "-p", "no:cacheprovider", "-o", "timeout=1500")
    environment = (("DMAPLANE_ENDPOINT_KILLS", str(ENDPOINT_KILLS)),)
    return [Step([*command, "tests/endpoint/test_restarts.py"], pytest_tally, environment)]


def soak_stage(arguments: argparse.Namespace) -> list[Step]:
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    command = [BUILD / "gcc/soak", "--seed", str(seed), "--kills", str(SOAK_KILLS)]
    steps = build("gcc", "-DCMAKE_C_COMPILER=gcc", targets=["soak"])
    return [*steps, Step(command, one_check)]


# ---- the module


def module_stage(series: str) -> Callable[[argparse.Namespace], list[Step]]:
    command = python("tools/kernel/build.py", series, "--sparse", "--standin")
    return lambda _: [Step(command, one_check)]


def packaging_stage(_: argparse.Namespace) -> list[Step]:
    return [
        Step(python("tools/kernel/checkpatch.py"), plain_tally),
        Step(python("tools/kernel/install.py", "--check", "6.12"), plain_tally),
    ]


def vmtest_stage(series: str, *options: str) -> Callable[[argparse.Namespace], list[Step]]:
    command = python("tools/vm/vmtest.py", "--kernel", series, *options)
    return lambda _: [Step(command, plain_tally)]


def only_x86() -> str:
    machine = platform.machine()
    return "" if machine == "x86_64" else f"the kernels it boots are x86-64, this is {machine}"


def asks(*command: object) -> Callable[[], str]:
    """What the command says is missing, if it exits with 3."""

    def ask() -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 3 else ""

    return ask


def lacks_kernel(series: str) -> Callable[[], str]:
    return asks(*python("tools/vm/kernels.py", series))


def one_check(_: str) -> Tally:
    return Tally(passed=1)


def only_elsewhere() -> str:
    return "native here: the other stages are this one" if platform.machine() == "aarch64" else ""


KBUILD = ("make", "gcc", "sparse", "modprobe")
QEMU = ("qemu-system-x86_64", "busybox", "setpriv", "modprobe")
PAIR = (*QEMU, "ip", "rdma", "ib_write_bw")
OVER_RDMA = "verbs or test_pair"
OLDER = "(conformance and not verbs) or kernel-remote"
lacks_checkpatch = asks(*python("tools/kernel/checkpatch.py", "--where"))

STAGES = (
    Stage("tidy", tidy_stage, ("gcc", "g++")),
    Stage("gcc", gcc_stage, ("gcc",)),
    Stage("clang", clang_stage, ("clang",)),
    Stage("asan", asan_stage, ("gcc",)),
    Stage("tsan", tsan_stage, ("gcc", "setarch")),
    Stage("aarch64", aarch64_stage, ("aarch64-linux-gnu-gcc", "qemu-aarch64"), only_elsewhere),
    Stage("mypy", mypy_stage),
    Stage("ruff", ruff_stage),
    Stage("pytest", pytest_stage),
    Stage("module-6.12", module_stage("6.12"), KBUILD, only_x86, lacks_kernel("6.12")),
    Stage("module-6.1", module_stage("6.1"), KBUILD, only_x86, lacks_kernel("6.1")),
    Stage("packaging", packaging_stage, ("perl", "make"), only_x86, lacks_checkpatch),
    Stage(
        "vmtest-6.12",
        vmtest_stage("6.12", "-k", f"not ({OVER_RDMA})"),
        QEMU,
        only_x86,
        lacks_kernel("6.12"),
    ),
    Stage(
        "vmtest-rdma", vmtest_stage("6.12", "-k", OVER_RDMA), PAIR, only_x86, lacks_kernel("6.12")
    ),
    # All of it on the older kernel too: make vmtest KERNEL=6.1.
    Stage("vmtest-6.1", vmtest_stage("6.1", "-k", OLDER), QEMU, only_x86, lacks_kernel("6.1")),
    Stage("vmtest-pair", vmtest_stage("6.12", "--pair"), PAIR, only_x86, lacks_kernel("6.12")),
    Stage("simulator", simulator_stage, ("gcc",)),
    Stage("fuzz", fuzz_stage, ("gcc",)),
    Stage("fuzz-wire", fuzz_wire_stage, ("gcc",)),
    Stage("soak", soak_stage, ("gcc",)),
    Stage("restarts", restarts_stage),
)


# ---- running


def run_step(step: Step, log: Path, name: str) -> tuple[int, str]:
    """Exit status and output of the step; the output is also added to the log."""
    environment = os.environ | dict(step.environment)
    command = [str(word) for word in step.command]
    start = time.monotonic()
    offset = log.stat().st_size if log.exists() else 0
    with log.open("ab") as sink:
        sink.write(("$ " + " ".join(command) + "\n").encode())
        sink.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
        while True:
            try:
                status = process.wait(timeout=HEARTBEAT_S)
                break
            except subprocess.TimeoutExpired:
                elapsed_s = time.monotonic() - start
                if elapsed_s > STAGE_LIMIT_S:
                    process.kill()
                    process.wait()
                    sink.write(f"ended after {STAGE_LIMIT_S} s\n".encode())
                    status = 124
                    break
                lines = log.read_bytes()[offset:].split(b"\n")
                latest = [line for line in lines if line.strip()][-1].decode(errors="replace")
                print(f"    {name} {elapsed_s:.0f} s: {latest[:80]}", flush=True)
    return status, log.read_bytes()[offset:].decode(errors="replace")


def run_stage(stage: Stage, arguments: argparse.Namespace) -> Tally:
    why = stage.applies()
    if why:
        return Tally(skipped=1, reasons=[f"not-applicable: {stage.name}: {why}"])
    missing = [tool for tool in stage.tools if not shutil.which(tool)]
    missing += [] if missing else [thing for thing in (stage.lacks(),) if thing]
    if missing:
        reason = f"missing-tool: {stage.name}: {', '.join(missing)}"
        if IN_CI:
            return Tally(failed=1, reasons=[reason])
        return Tally(skipped=1, reasons=[reason])
    log = LOGS / f"{stage.name}.log"
    log.unlink(missing_ok=True)
    total = Tally()
    for step in stage.steps(arguments):
        status, output = run_step(step, log, stage.name)
        tally = step.count(output) if step.count else None
        if status != 0 and (tally is None or tally.failed == 0):
            tally = Tally(failed=1)
        elif step.count and (tally is None or tally.passed + tally.failed == 0):
            tally = Tally(failed=1, reasons=[f"ran-nothing: {stage.name}"])
        if tally:
            total.add(tally)
        if tally and tally.failed:
            named = failures(output) or [" ".join(str(word) for word in step.command[-4:])]
            total.failures += [f"{stage.name}: {name}" for name in named]
        if status != 0 and not step.count:
            break  # it did not build
    if total.failed:
        print(f"---- the end of {log.relative_to(ROOT)}")
        print("\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]))
        print("----", flush=True)
    return total


def run_one(name: str) -> int:
    """Runs what matches name in ctest and pytest; at least one test has to."""
    log = LOGS / "one.log"
    log.unlink(missing_ok=True)
    for step in build("gcc", "-DCMAKE_C_COMPILER=gcc"):
        status, output = run_step(step, log, "build")
        if status:
            print(output)
            return status
    runs = 0
    failures = 0
    ctest_command = ["ctest", "--test-dir", BUILD / "gcc", "-V", "-R", name, "--no-tests=ignore"]
    pytest_command = python("-m", "pytest", "-k", name, "-p", "no:cacheprovider")
    for command, count in ((ctest_command, ctest_tally), (pytest_command, pytest_tally)):
        status, output = run_step(Step(command), log, name)
        tally = count(output)
        if tally and tally.passed + tally.failed + tally.skipped:
            print(output)
            runs += tally.passed + tally.failed + tally.skipped
            failures += tally.failed or (status != 0)
    if not runs:
        print(f"no test is named like {name!r}")
        return 1
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="run every check and test")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--stage", action="append", choices=names, help="only this one; repeats")
    parser.add_argument("--seed", type=int, help="seed of simulator, fuzzer and soak")
    parser.add_argument("--one", metavar="NAME", help="only the tests whose name contains NAME")
    arguments = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    LOGS.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        return run_one(arguments.one)
    chosen = [stage for stage in STAGES if not arguments.stage or stage.name in arguments.stage]
    total = Tally()
    begin = time.monotonic()
    for index, stage in enumerate(chosen, 1):
        start = time.monotonic()
        print(f"[{index:2}/{len(chosen)}] {stage.name}", flush=True)
        tally = run_stage(stage, arguments)
        total.add(tally)
        print(f"        {tally} in {time.monotonic() - start:.1f} s", flush=True)
    for reason in total.reasons:
        print(f"skip or failure: {reason}")
    print(f"all of it took {time.monotonic() - begin:.0f} s; logs are in build/log/")
    for name in total.failures:
        print(f"failed: {name}")
    print(total)
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
