#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Python's view of the contract header, and the proof of its layout.

Reads include/uapi/dmaplane.h and writes two files that are checked in:

  python/dmaplane/_abi.py   constants, one ctypes.Structure per struct, numpy
                            dtypes of the ring entries, the table of commands
  tests/contract/layout.c   a static assertion of every size and offset

Offsets are computed here from natural alignment, not by a compiler: the C
compiler (layout.c), ctypes and numpy then each have to agree with the header's
own rule that padding is written out. A gap that nobody wrote is an error.

  tools/abi.py           write both files
  tools/abi.py --check   exit 1 if one of them differs from what would be written
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "include/uapi/dmaplane.h"

# C type -> bytes, ctypes name, numpy code
SCALARS = {
    "__u8": (1, "c_uint8", "u1"),
    "__u16": (2, "c_uint16", "<u2"),
    "__u32": (4, "c_uint32", "<u4"),
    "__s32": (4, "c_int32", "<i4"),
    "__aligned_u64": (8, "c_uint64", "<u8"),
}
RING_ENTRIES = ("submission", "completion")
PREFIX = "DMP_"


class HeaderError(Exception):
    """The header breaks a rule that the generated files depend on."""


@dataclass(frozen=True)
class Field:
    name: str
    ctype: str
    offset: int
    count: int | None  # None: not an array
    length: str  # the array bound as the header spells it

    @property
    def python_name(self) -> str:
        # Two leading underscores would be mangled inside a Python class.
        return self.name.lstrip("_")


@dataclass(frozen=True)
class Struct:
    name: str  # without dmp_
    summary: str
    fields: tuple[Field, ...]
    size_bytes: int

    @property
    def class_name(self) -> str:
        return "".join(part.capitalize() for part in self.name.split("_"))


@dataclass(frozen=True)
class Contract:
    constants: dict[str, int]
    hexadecimal: frozenset[str]
    commands: dict[str, int]
    structs: tuple[Struct, ...]


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)


def evaluate(expression: str, known: dict[str, int]) -> int:
    """The value of a C integer expression made of literals, known names, << | + - * /."""
    expression = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)(?:[uUlL]+)\b", r"\1", expression)

    def walk(node: ast.AST) -> int:
        match node:
            case ast.Expression(body=body):
                return walk(body)
            case ast.Constant(value=int() as value):
                return value
            case ast.Name(id=name) if name in known:
                return known[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -walk(operand)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = walk(left), walk(right)
                match op:
                    case ast.LShift():
                        return a << b
                    case ast.BitOr():
                        return a | b
                    case ast.Add():
                        return a + b
                    case ast.Sub():
                        return a - b
                    case ast.Mult():
                        return a * b
                    case ast.Div():
                        return a // b
        raise HeaderError(f"cannot evaluate {expression!r}")

    return walk(ast.parse(expression.strip(), mode="eval"))


def parse_constants(text: str) -> tuple[dict[str, int], frozenset[str], dict[str, int]]:
    constants: dict[str, int] = {}
    hexadecimal: set[str] = set()
    commands: dict[str, int] = {}
    for name, value in re.findall(r"^#define[ \t]+(DMP_\w+)[ \t]+(.+?)[ \t]*$", text, re.MULTILINE):
        call = re.fullmatch(r"_IO\((\w+),\s*(\w+)\)", value)
        if call:
            # _IO(type, nr) is type << 8 | nr on every architecture that is served.
            number = evaluate(call[1], constants) << 8 | evaluate(call[2], constants)
            commands[name] = number
            constants[name] = number
            hexadecimal.add(name)
        else:
            constants[name] = evaluate(value, constants)
            if "<<" in value or "0x" in value:
                hexadecimal.add(name)
    repeated = {n for n in commands.values() if list(commands.values()).count(n) > 1}
    if repeated:
        raise HeaderError(f"command number used twice: {sorted(map(hex, repeated))}")
    return constants, frozenset(hexadecimal), commands


def parse_struct(name: str, body: str, summary: str, constants: dict[str, int]) -> Struct:
    fields: list[Field] = []
    offset = 0
    widest = 1
    declarations = [line.strip() for line in body.split(";") if line.strip()]
    for declaration in declarations:
        found = re.fullmatch(r"(\w+)\s+(\w+)(?:\[(.+)\])?", declaration)
        if not found or found[1] not in SCALARS:
            raise HeaderError(f"struct dmp_{name}: cannot read {declaration!r}")
        ctype, field_name, length = found[1], found[2], found[3] or ""
        count = evaluate(length, constants) if length else None
        size_bytes = SCALARS[ctype][0]
        if offset % size_bytes:
            raise HeaderError(f"struct dmp_{name}: unwritten padding before {field_name}")
        fields.append(Field(field_name, ctype, offset, count, length))
        offset += size_bytes * (1 if count is None else count)
        widest = max(widest, size_bytes)
    if offset % widest:
        raise HeaderError(f"struct dmp_{name}: unwritten padding at its end")
    return Struct(name, summary, tuple(fields), offset)


def parse(text: str) -> Contract:
    summaries = {
        name: " ".join(summary.split())
        for name, summary in re.findall(
            r"/\*\*\s*\n \* struct dmp_(\w+) - (.*?)(?=\n \* @|\n \*\n|\n \*/)", text, re.DOTALL
        )
    }
    code = without_comments(text)
    constants, hexadecimal, commands = parse_constants(code)
    structs = tuple(
        parse_struct(name, body, summaries.get(name, ""), constants)
        for name, body in re.findall(
            r"^struct dmp_(\w+) \{(.*?)^\};", code, re.DOTALL | re.MULTILINE
        )
    )
    names = {struct.name for struct in structs}
    for struct in structs:
        first = [field.name for field in struct.fields[:2]]
        is_command = any(command_struct(c, names) == struct.name for c in commands)
        if is_command and first != ["size", "flags"]:
            raise HeaderError(f"struct dmp_{struct.name} does not start with size, flags")
    return Contract(constants, hexadecimal, commands, structs)


def command_struct(command: str, names: set[str]) -> str:
    """The struct a command takes: its own name, or the one that all DESTROY share."""
    own = command.removeprefix(PREFIX).lower()
    if own in names:
        return own
    if own.endswith("_destroy") and "destroy" in names:
        return "destroy"
    raise HeaderError(f"{command} has no struct")


def wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def python_class(struct: Struct) -> list[str]:
    out = ["", "", f"class {struct.class_name}(ctypes.Structure):"]
    what = f"struct dmp_{struct.name}, {struct.size_bytes} bytes: {struct.summary}"
    lines = wrapped(what, 88)
    out += [f'    """{lines[0]}' + ("" if len(lines) > 1 else '"""')]
    if len(lines) > 1:
        out += [f"    {line}" for line in lines[1:]] + ['    """']
    out.append("")
    for field in struct.fields:
        ctypes_name = SCALARS[field.ctype][1]
        kind = "int" if field.count is None else f"ctypes.Array[ctypes.{ctypes_name}]"
        out.append(f"    {field.python_name}: {kind}")
    out += ["", "    _fields_ = ("]
    for field in struct.fields:
        ctypes_name = f"ctypes.{SCALARS[field.ctype][1]}"
        kind = ctypes_name if field.count is None else f"{ctypes_name} * {field.count}"
        out.append(f'        ("{field.python_name}", {kind}),')
    out.append("    )")
    return out


def numpy_dtype(struct: Struct) -> list[str]:
    names = [f'"{field.python_name}"' for field in struct.fields]
    formats = [f'"{SCALARS[field.ctype][2]}"' for field in struct.fields]
    offsets = [str(field.offset) for field in struct.fields]
    out = [
        "",
        f"# struct dmp_{struct.name}",
        f"{struct.name.upper()}: np.dtype[np.void] = np.dtype(",
        "    {",
    ]
    for key, values in (("names", names), ("formats", formats), ("offsets", offsets)):
        out.append(f'        "{key}": [')
        out += [f"            {value}," for value in values]
        out.append("        ],")
    out += [f'        "itemsize": {struct.size_bytes},', "    }", ")"]
    return out


def python_text(contract: Contract) -> str:
    out = [
        "# SPDX-License-Identifier: MIT",
        '"""The contract as Python sees it: numbers, command structs, ring entries.',
        "",
        "Generated by tools/abi.py from include/uapi/dmaplane.h; `make tidy` refuses a",
        "difference. Names are the header's without DMP_ and dmp_; the meaning of every",
        "field is documented there.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "import ctypes",
        "from typing import Final, NamedTuple",
        "",
        "import numpy as np",
        "",
    ]
    for name, value in contract.constants.items():
        shown = f"0x{value:X}" if name in contract.hexadecimal else str(value)
        out.append(f"{name.removeprefix(PREFIX)}: Final = {shown}")
    for struct in contract.structs:
        out += python_class(struct)
    out.append("")
    for struct in contract.structs:
        if struct.name in RING_ENTRIES:
            out += numpy_dtype(struct)
    classes = {struct.name: struct for struct in contract.structs}
    out += [
        "",
        "",
        "class Command(NamedTuple):",
        '    """One command of the contract."""',
        "",
        "    name: str",
        "    number: int",
        "    struct: type[ctypes.Structure]",
        "    size_min: int  # end of the last field of the struct's first release",
        "",
        "",
        "COMMANDS: Final = (",
    ]
    for command, number in contract.commands.items():
        struct = classes[command_struct(command, set(classes))]
        name = command.removeprefix(PREFIX)
        out.append(
            f'    Command("{name}", 0x{number:X}, {struct.class_name}, {struct.size_bytes}),'
        )
    out += [")", ""]
    return "\n".join(out)


def layout_text(contract: Contract) -> str:
    out = [
        "/* SPDX-License-Identifier: MIT */",
        "/*",
        " * layout.c - size and offset of everything in the contract, asserted",
        " *",
        " * Generated by tools/abi.py from include/uapi/dmaplane.h. Compiles as C and as C++,",
        " * with -m64 and -m32, and has no code: that it compiles is the test.",
        " */",
        "#include <stddef.h>",
        "",
        '#include "dmaplane.h"',
        "",
        "#ifdef __cplusplus",
        "#define ASSERT_THAT(condition) static_assert(condition, #condition)",
        "#else",
        "#define ASSERT_THAT(condition) _Static_assert(condition, #condition)",
        "#endif",
        "#define AT(name, field, bytes) ASSERT_THAT(offsetof(struct name, field) == (bytes))",
        "#define SIZE(name, bytes) ASSERT_THAT(sizeof(struct name) == (bytes))",
        "",
    ]
    for command, number in contract.commands.items():
        out.append(f"ASSERT_THAT({command} == 0x{number:X});")
    for struct in contract.structs:
        out.append("")
        out.append(f"SIZE(dmp_{struct.name}, {struct.size_bytes});")
        for field in struct.fields:
            out.append(f"AT(dmp_{struct.name}, {field.name}, {field.offset});")
    return "\n".join(out) + "\n"


def outputs(contract: Contract) -> dict[Path, str]:
    return {
        ROOT / "python/dmaplane/_abi.py": python_text(contract),
        ROOT / "tests/contract/layout.c": layout_text(contract),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="generate the Python ABI and the layout proof")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    try:
        contract = parse(HEADER.read_text())
    except HeaderError as error:
        print(f"abi: {HEADER.relative_to(ROOT)}: {error}", file=sys.stderr)
        return 1
    status = 0
    for path, text in outputs(contract).items():
        shown = path.relative_to(ROOT)
        if path.exists() and path.read_text() == text:
            continue
        if arguments.check:
            print(f"abi: {shown} differs; run tools/abi.py", file=sys.stderr)
            status = 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"abi: wrote {shown}")
    return status


if __name__ == "__main__":
    sys.exit(main())
