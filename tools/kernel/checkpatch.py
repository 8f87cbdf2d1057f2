#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The kernel's own style checker over kernel/, strict; one check a file, none may remark.

  tools/kernel/checkpatch.py [FILE...]
  tools/kernel/checkpatch.py --where    prints it, or what is missing, with exit status 3

Debian's headers do not carry checkpatch.pl; it is taken out of linux-source-6.12 once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
ARCHIVE = Path("/usr/src/linux-source-6.12.tar.xz")
EXTRACTED = TREE / "build/checkpatch"
WANTED = ("checkpatch.pl", "spelling.txt", "const_structs.checkpatch")
LINE_COLUMNS = 100

# What is not followed, where, and why.
EXCEPTIONS = {
    "": (
        "BIT_MACRO",  # 1ULL << 20 is a size; BIT_ULL(20) would hide that
        "UNNECESSARY_PARENTHESES",  # a comparison beside another reads better in its own
        "UNCOMMENTED_DEFINITION",  # what a lock guards is said where its struct is
        "FILE_PATH_CHANGES",  # there is no MAINTAINERS file here
    ),
    # Its very purpose; and a macro that exports.
    "compat.h": ("LINUX_VERSION_CODE", "CONSTANT_COMPARISON", "EXPORT_SYMBOL"),
    "command.c": ("BRACKET_SPACE",),  # a row of the table: [number], made by a macro
    "executor.c": ("YIELD",),  # a spinner lets others in front of him, and says why there
    # Tracepoints are laid out like the kernel's own.
    "trace.h": ("OPEN_ENDED_LINE", "PARENTHESIS_ALIGNMENT", "SPACING"),
}


def find() -> Path | None:
    """checkpatch.pl, or None if there is none on this machine."""
    installed = sorted(Path("/usr/src").glob("linux-*/scripts/checkpatch.pl"))
    if installed:
        return installed[-1]
    target = EXTRACTED / "checkpatch.pl"
    if target.exists():
        return target
    if not ARCHIVE.exists():
        return None
    EXTRACTED.mkdir(parents=True, exist_ok=True)
    names = [f"linux-source-6.12/scripts/{name}" for name in WANTED]
    command = ["tar", "xf", str(ARCHIVE), "-C", str(EXTRACTED), "--strip-components=2", *names]
    return target if subprocess.run(command, check=False).returncode == 0 else None


def check(script: Path, path: Path) -> bool:
    ignored = ",".join((*EXCEPTIONS[""], *EXCEPTIONS.get(path.name, ())))
    command = [
        "perl",
        str(script),
        "--no-tree",
        "--terse",
        "--show-types",
        "--strict",
        "--no-summary",
    ]
    command += [f"--max-line-length={LINE_COLUMNS}", "--ignore", ignored, "-f", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, end="")
    return done.returncode == 0 and not done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="checkpatch over the module")
    parser.add_argument("--where", action="store_true", help="only say which checkpatch.pl")
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    script = find()
    if script is None:
        print("no checkpatch.pl (linux-source-6.12)")
        return 3
    if arguments.where:
        print(script)
        return 0
    files = arguments.files or sorted((TREE / "kernel").glob("*.[ch]"))
    results = [check(script, path) for path in files]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) and results else 1


if __name__ == "__main__":
    sys.exit(main())
