#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The rules of the house, enforced.

Every rule is a function that takes the root of a tree and returns what is wrong
with it, one line each; an empty list is a pass. tests/tidy/ shows for each that
it can fail. Prints one line a rule and ends with "N passed, N failed".
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
SKIPPED_DIRECTORIES = {"build", "dist", "shared", "node_modules"}
SOURCE_SUFFIXES = {".c", ".h", ".py", ".sh", ".map", ".cmake", ".toml", ".yml"}
SOURCE_NAMES = {"Makefile", "CMakeLists.txt", "Kbuild", "run"}
GENERATED = {"python/dmaplane/_abi.py", "tests/contract/layout.c"}
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 90

Problems = list[str]


# ---- the tree


def files(root: Path, *suffixes: str, under: str = "") -> Iterator[Path]:
    """Files of the tree in order, without what git ignores or never sees."""
    top = root / under
    for directory, names, found in os.walk(top):
        names[:] = sorted(
            name
            for name in names
            if name not in SKIPPED_DIRECTORIES
            and name != "__pycache__"
            and (not name.startswith(".") or name == ".ci")
        )
        for name in sorted(found):
            if not suffixes or Path(name).suffix in suffixes:
                yield Path(directory) / name


def source_files(root: Path) -> Iterator[Path]:
    for path in files(root):
        if path.suffix in SOURCE_SUFFIXES or path.name in SOURCE_NAMES:
            yield path


def lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()


def run(*command: object, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], input=text, capture_output=True, text=True, check=False
    )


# ---- arrows: python -> planes -> core -> uapi

INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')
CORE_SYSTEM = {"linux/types.h", "linux/errno.h"}
# Where the two worlds meet: what the compiler gives in userspace, the kernel there.
CORE_BORDER = {
    "types.h": {"stdbool.h", "stddef.h"},
    "atomic.h": {"asm/barrier.h", "linux/compiler.h"},
}
KERNEL_SYSTEM = ("linux/", "asm/", "trace/", "rdma/", "net/", "crypto/")
UAPI_SYSTEM = {"linux/types.h", "linux/ioctl.h"}
MAY_INCLUDE = {
    "include": ("include/uapi",),
    "core": ("core", "include/uapi"),
    "embedded": ("embedded", "core", "include/uapi"),
    "kernel": ("kernel", "core", "include/uapi"),
    "bench": ("bench", "embedded", "include/uapi"),
}


def check_include_arrows(root: Path) -> Problems:
    problems = []
    for layer, allowed in MAY_INCLUDE.items():
        for path in files(root, ".c", ".h", under=layer):
            relative = path.relative_to(root)
            for number, line in enumerate(lines(path), 1):
                found = INCLUDE.match(line)
                if not found:
                    continue
                where = f"{relative}:{number}: includes {found[2]}"
                if found[1] == '"':
                    places = [root, path.parent, *(root / place for place in allowed)]
                    targets = [(p / found[2]).resolve() for p in places]
                    homes = [(root / place).resolve() for place in allowed]
                    if not any(
                        t.exists() and any(home in t.parents for home in homes) for t in targets
                    ):
                        problems.append(f"{where}, which is not in {' or '.join(allowed)}")
                elif layer == "core":
                    if found[2] not in CORE_SYSTEM | CORE_BORDER.get(path.name, set()):
                        problems.append(f"{where}; core knows only {sorted(CORE_SYSTEM)}")
                elif layer == "kernel" and not found[2].startswith(KERNEL_SYSTEM):
                    problems.append(f"{where}; the module knows only {' '.join(KERNEL_SYSTEM)}")
                elif layer == "include" and found[2] not in UAPI_SYSTEM:
                    problems.append(f"{where}; the contract knows only {sorted(UAPI_SYSTEM)}")
    return problems


# `import dmaplane` stays light: these may be imported at the top of a module only
# there; everything else that is not the standard library, numpy or ours, nowhere.
TOP_LEVEL_IMPORTS = {
    "rich": ("cli", "doctor", "bench", "demo.py"),
    "typer": ("cli",),
    "pytest": ("testing",),
    "hypothesis": ("testing",),
    "h11": ("kv",),
    "PIL": ("kv",),
}


def imported_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Modules imported when the file itself is imported (not inside a function)."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def check_import_arrows(root: Path) -> Problems:
    problems = []
    package = root / "python/dmaplane"
    public = declared_functions(root)
    for path in files(root, ".py", under="python"):
        relative = path.relative_to(root)
        part = path.relative_to(package).parts[0] if package in path.parents else ""
        text = path.read_text()
        for number, name in imported_names(ast.parse(text)):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in ("numpy", "dmaplane", "__future__"):
                continue
            if part not in TOP_LEVEL_IMPORTS.get(top, ()):
                problems.append(f"{relative}:{number}: imports {name} when it is imported")
        for number, line in enumerate(text.splitlines(), 1):
            for name in re.findall(r"\.(dmp_[a-z0-9_]+)\b(?=\(|\.(?:argtypes|restype))", line):
                # dmp_bench_* are the loops of libdmaplane-bench, not the plane's.
                if name not in public and not name.startswith("dmp_bench"):
                    problems.append(f"{relative}:{number}: {name} is not in libdmaplane.h")
    return problems


# ---- names and words

BANNED_NAME = re.compile(r"(?i)(?:^|[^a-z])(utils?|helpers?|common|misc|managers?)(?:[^a-z]|$)")
# Written so that this file does not contain what it looks for.
BANNED_WORDS = (
    (re.compile(r"\b(T[O]DO|F[I]XME|X[X]X)\b"), "unfinished work"),
    (re.compile(r"(?i)\bplace[h]older\b|\bfor no[w]\b"), "unfinished work"),
    (re.compile(r"(?<![\w.])/(?:[r]oot|[h]ome|[w]ork|[t]mp)/"), "a path of somebody's machine"),
    (re.compile(r"(?i)\b(?:pypi[.]org|pythonhosted[.]org|deb[.]debian[.]org)\b"), "a host"),
    # The kernel's own dma-buf calls cannot be renamed.
    (re.compile(r"\b(?!dma_buf_)\w+_unl[o]cked\b"), "the suffix that means two opposite things"),
)


def check_names(root: Path) -> Problems:
    problems = []
    for path in files(root):
        relative = path.relative_to(root)
        if BANNED_NAME.search(path.stem.replace("_", " ")):
            problems.append(f"{relative}: names no noun of its own")
        if path.suffix not in (".c", ".h", ".py"):
            continue
        pattern = r"^class\s+(\w+)" if path.suffix == ".py" else r"^struct\s+(\w+)\s*\{"
        for number, line in enumerate(lines(path), 1):
            found = re.match(pattern, line)
            if found:
                words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", found[1])
                if BANNED_NAME.search(words):
                    problems.append(f"{relative}:{number}: {found[1]} names no noun of its own")
    return problems


def check_words(root: Path) -> Problems:
    problems = []
    for path in files(root):
        if path.suffix in (".json", ".png") or path.parent.name == "LICENSES":
            continue
        for number, line in enumerate(lines(path), 1):
            for pattern, what in BANNED_WORDS:
                found = pattern.search(line)
                if found:
                    problems.append(f"{path.relative_to(root)}:{number}: {found[0]!r} is {what}")
    return problems


# ---- sizes and licences


def check_sizes(root: Path) -> Problems:
    problems = []
    for path in files(root, ".c", ".h", ".py", ".sh"):
        relative = path.relative_to(root)
        text = lines(path)
        if relative.as_posix() in GENERATED:
            continue
        if len(text) > FILE_LINES_MAX:
            problems.append(f"{relative}: {len(text)} lines, at most {FILE_LINES_MAX}")
        if path.suffix != ".c":
            continue
        start = 0
        for number, line in enumerate(text, 1):
            if line.startswith("{"):
                start = number
            elif line.startswith("}") and start:
                if number - start > FUNCTION_LINES_MAX:
                    problems.append(
                        f"{relative}:{start}: function of {number - start} lines, "
                        f"at most {FUNCTION_LINES_MAX}"
                    )
                start = 0
    contract = [p for p in problems if p.startswith("include/uapi/")]
    # The contract is one text by design; it may be as long as it has to be.
    return [p for p in problems if p not in contract]


LICENCES = (
    ("include/uapi", "GPL-2.0 WITH Linux-syscall-note"),
    ("core", "GPL-2.0 OR MIT"),
    ("kernel", "GPL-2.0"),
    ("", "MIT"),
)


def check_licences(root: Path) -> Problems:
    problems = []
    for path in source_files(root):
        relative = path.relative_to(root)
        wanted = next(
            licence for home, licence in LICENCES if not home or Path(home) in relative.parents
        )
        text = "\n".join(lines(path)[:3])
        found = re.search(r"SPDX-License-Identifier: (.+?)\s*(?:\*/)?$", text, re.MULTILINE)
        if not found:
            problems.append(f"{relative}: no SPDX line; {wanted} belongs there")
        elif found[1] != wanted:
            problems.append(f"{relative}: {found[1]}, but its directory is {wanted}")
    return problems


# ---- what only the module has to keep

FUNCTION_HEAD = re.compile(r"^[a-z][^;{}()]*?\b(\w+)\(", re.MULTILINE)


def functions(text: str) -> Iterator[tuple[str, int, str]]:
    """Name, line and body of each function that is defined in kernel style."""
    for found in re.finditer(r"^\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        blank = text.rfind("\n\n", 0, found.start())
        start = 0 if blank < 0 else blank + 2
        head = FUNCTION_HEAD.search(text, start, found.start())
        if head:
            yield head[1], text.count("\n", 0, found.start()) + 1, found[1]


def check_kernel_habits(root: Path) -> Problems:
    """Locks are asserted where a name says so; versions differ in one header; no BUG()."""
    problems = []
    for path in files(root, ".c", ".h", under="kernel"):
        relative = path.relative_to(root)
        text = path.read_text()
        for name, number, body in functions(text):
            if name.endswith("_locked") and "lockdep_assert_held" not in body:
                problems.append(f"{relative}:{number}: {name} does not assert its lock")
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(r"\bBUG(_ON)?\(", line):
                problems.append(f"{relative}:{number}: BUG takes the machine down")
            if re.search(r"%p[xK]", line):
                problems.append(f"{relative}:{number}: shows a raw address")
            if "LINUX_VERSION_CODE" in line and path.name != "compat.h":
                problems.append(f"{relative}:{number}: kernels differ in compat.h only")
    return problems


# ---- the compiler's word

LANGUAGES = (("gcc", "c", "-std=gnu11"), ("g++", "c++", "-std=c++11"))
WARNINGS = ("-Wall", "-Wextra", "-Werror")


def widths() -> tuple[str, ...]:
    return ("-m64", "-m32") if platform.machine() == "x86_64" else ("",)


def include_flags(root: Path) -> list[str]:
    flags = [f"-I{root / place}" for place in ("include/uapi", ".", "embedded", "core")]
    if platform.machine() == "x86_64":
        # Without multilib headers -m32 finds asm/ only where -m64 does.
        flags.append(f"-idirafter/usr/include/{run('gcc', '-print-multiarch').stdout.strip()}")
    return flags


def compile_text(root: Path, text: str, shown: str, *flags: str) -> Problems:
    command = [*flags, *WARNINGS, *include_flags(root), "-fsyntax-only", "-"]
    result = run(*command, text=text)
    if result.returncode == 0:
        return []
    first = next(iter(result.stderr.splitlines()), "no message")
    return [f"{shown}: {' '.join(flags)}: {first}"]


def check_contract_compiles(root: Path) -> Problems:
    problems = []
    for compiler, language, standard in LANGUAGES:
        for width in widths():
            flags = [flag for flag in (compiler, "-x", language, standard, width) if flag]
            problems += compile_text(root, '#include "dmaplane.h"\n', "dmaplane.h", *flags)
            layout = root / "tests/contract/layout.c"
            problems += compile_text(root, layout.read_text(), layout.name, *flags)
    return problems


def check_headers_alone(root: Path) -> Problems:
    problems = []
    for home in ("core", "embedded"):
        for path in files(root, ".h", under=home):
            shown = str(path.relative_to(root))
            text = f'#include "{shown}"\n#include "{shown}"\n'
            problems += compile_text(root, text, shown, "gcc", "-x", "c", "-std=gnu11")
            if path.name == "libdmaplane.h":
                problems += compile_text(root, text, shown, "g++", "-x", "c++", "-std=c++11")
    return problems


# What a compiler may call on its own; both worlds have them.
COMPILER_CALLS = {"memcpy", "memset", "memmove", "memcmp"}
KERNEL_FLAGS = (
    "-std=gnu11",
    "-O2",
    "-ffreestanding",
    "-fno-strict-aliasing",
    "-fno-pic",
    "-fno-stack-protector",
)
KERNEL_FLAGS_X86 = ("-mgeneral-regs-only", "-mno-red-zone", "-mcmodel=kernel")


def check_core_freestanding(root: Path) -> Problems:
    """core/ compiles as the kernel would compile it and needs nothing but itself."""
    problems = []
    flags = KERNEL_FLAGS + (KERNEL_FLAGS_X86 if platform.machine() == "x86_64" else ())
    defined: set[str] = set()
    needed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in files(root, ".c", under="core"):
            shown = path.relative_to(root)
            target = Path(folder) / f"{path.stem}.o"
            options = [*flags, *WARNINGS, *include_flags(root)]
            result = run("gcc", *options, "-c", path, "-o", target)
            if result.returncode:
                first = next(iter(result.stderr.splitlines()), "no message")
                problems.append(f"{shown}: with kernel flags: {first}")
                continue
            for line in run("nm", "--format=posix", target).stdout.splitlines():
                name, kind = line.split()[:2]
                if kind == "U":
                    needed.setdefault(name, str(shown))
                else:
                    defined.add(name)
    for name, user in sorted(needed.items()):
        if name not in defined | COMPILER_CALLS:
            problems.append(f"{user}: calls {name}, which core does not have")
    return problems


# ---- what the library shows


def declared_functions(root: Path) -> set[str]:
    header = root / "embedded/libdmaplane.h"
    text = header.read_text() if header.exists() else ""
    return set(re.findall(r"^DMP_PUBLIC\s[^;(]*?\b(dmp_\w+)\(", text, re.MULTILINE))


def mapped_functions(root: Path) -> set[str]:
    text = (root / "embedded/libdmaplane.map").read_text()
    return set(re.findall(r"^\s*(dmp_\w+);", text, re.MULTILINE))


def library(root: Path) -> Path | None:
    """The library under test: the one that is named, else the installed one."""
    named = os.environ.get("DMAPLANE_LIBRARY")
    if named:
        return Path(named)
    found = sorted((root / ".venv").glob("lib/python*/site-packages/dmaplane/libdmaplane.so"))
    return found[0] if found else None


def check_exports(root: Path) -> Problems:
    declared, mapped = declared_functions(root), mapped_functions(root)
    problems = [f"libdmaplane.map lacks {name}" for name in sorted(declared - mapped)]
    problems += [f"libdmaplane.h lacks {name}" for name in sorted(mapped - declared)]
    built = library(root)
    if built is None:
        return [*problems, "libdmaplane.so is not installed; run tools/setup.sh"]
    output = run("nm", "-D", "--defined-only", "--format=posix", built).stdout
    rows = [line.split() for line in output.splitlines()]
    # Kind A is the name of the version itself.
    exported = {row[0].split("@")[0] for row in rows if row[1] != "A"}
    problems += [f"{built.name} lacks {name}" for name in sorted(declared - exported)]
    problems += [f"{built.name} shows {name}" for name in sorted(exported - declared)]
    return problems


# ---- the contract in Python


def check_generated(root: Path) -> Problems:
    result = run(sys.executable, root / "tools/abi.py", "--check")
    return result.stderr.splitlines() or ["tools/abi.py failed"] if result.returncode else []


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.stem}_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def abi_facts(abi: ModuleType) -> dict[str, int]:
    """C expression -> what Python believes it is."""
    facts: dict[str, int] = {}
    for name, value in vars(abi).items():
        if isinstance(value, int) and name.isupper():
            facts[f"DMP_{name}"] = value
        elif isinstance(value, type) and issubclass(value, ctypes.Structure):
            snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
            facts[f"sizeof(struct dmp_{snake})"] = ctypes.sizeof(value)
            for entry in value._fields_:
                member = f"__{entry[0]}" if entry[0].startswith("reserved") else entry[0]
                here = getattr(value, entry[0])
                facts[f"offsetof(struct dmp_{snake}, {member})"] = here.offset
                facts[f"sizeof(((struct dmp_{snake} *)0)->{member})"] = here.size
        elif name in ("SUBMISSION", "COMPLETION"):
            facts[f"sizeof(struct dmp_{name.lower()}) + 0"] = value.itemsize
            for member, (kind, offset, *_) in value.fields.items():
                facts[f"offsetof(struct dmp_{name.lower()}, {member}) + 0"] = offset
                facts[f"sizeof(((struct dmp_{name.lower()} *)0)->{member}) + 0"] = kind.itemsize
    return facts


def check_abi_equal(root: Path) -> Problems:
    """Compiles a program that prints what C believes, and compares every number."""
    facts = abi_facts(load_module(root / "python/dmaplane/_abi.py"))
    body = "\n".join(f'\tprintf("%lld\\n", (long long)({fact}));' for fact in facts)
    program = (
        "#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "dmaplane.h"\nint main(void)\n{{\n{body}\n\treturn 0;\n}}\n'
    )
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "facts"
        built = run("gcc", "-x", "c", *include_flags(root), "-", "-o", binary, text=program)
        if built.returncode:
            return [f"_abi.py names what C lacks: {line}" for line in built.stderr.splitlines()[:5]]
        values = [int(line) for line in run(binary).stdout.split()]
    return [
        f"{fact}: C says {c}, Python says {python}"
        for (fact, python), c in zip(facts.items(), values, strict=True)
        if c != python
    ]


CHECKS: Sequence[Callable[[Path], Problems]] = (
    check_include_arrows,
    check_import_arrows,
    check_names,
    check_words,
    check_sizes,
    check_licences,
    check_kernel_habits,
    check_contract_compiles,
    check_headers_alone,
    check_core_freestanding,
    check_exports,
    check_generated,
    check_abi_equal,
)


def main() -> int:
    names = [check.__name__.removeprefix("check_") for check in CHECKS]
    parser = argparse.ArgumentParser(description="enforce the rules of the house")
    parser.add_argument("--only", action="append", choices=names, help="only this rule; repeats")
    chosen = parser.parse_args().only or names
    failed = 0
    for name, check in zip(names, CHECKS, strict=True):
        if name not in chosen:
            continue
        problems = check(ROOT)
        failed += bool(problems)
        print(f"{name:20} {'FAILED' if problems else 'ok'}")
        for problem in problems:
            print(f"    {problem}")
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
