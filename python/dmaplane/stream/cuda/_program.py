# SPDX-License-Identifier: MIT
"""The kernels: CUDA C in this folder, compiled here by NVRTC for the device at hand.

A program is some of the files and some definitions, compiled to machine code of one
architecture (not to PTX: the driver of a machine may be older than the compiler, and would
not read its PTX). It is kept in $XDG_CACHE_HOME/dmaplane/cuda under a hash of everything it
comes from: sources, definitions, architecture, compiler. A file there is written whole or
not at all; one that cannot be read or written costs a compilation, under a second each.

`Kernels` is of one device: it loads a program when its first kernel is asked for. Its lock
guards its two tables.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import pathlib
import tempfile
import threading
from typing import TYPE_CHECKING, Any, Final, Literal

from dmaplane._errors import UnsupportedError
from dmaplane.stream.cuda._driver import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Callable

Hint = Literal["plain", "streaming", "uncached"]
HINTS: Final[dict[Hint, str]] = {
    "plain": "PLAIN",
    "streaming": "STREAMING",
    "uncached": "UNCACHED",
}
WORDS: Final = (16, 8, 4, 1)
BULK_SINCE: Final = 90
_FOLDER: Final = pathlib.Path(__file__).parent
_IMAGE_MAX: Final = 16 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """Source files of this folder and what is defined for them."""

    files: tuple[str, ...]
    definitions: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """All of it as one text."""
        return "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in self.files)

    def options(self, architecture: int) -> tuple[str, ...]:
        """Of the compiler."""
        return (
            f"--gpu-architecture=sm_{architecture}",
            "--std=c++17",
            *(f"-D{one}" for one in self.definitions),
        )


def copy_program(word: int, hint: Hint) -> Program:
    """The copies by words of @word bytes."""
    return Program(("words.cu", "copy.cu"), (f"WORD_BYTES={word}", f"HOST_HINT={HINTS[hint]}"))


BULK: Final = Program(("words.cu", "copy.cu", "bulk_words.cu", "bulk.cu"))
CEILING: Final = Program(("words.cu", "ceiling.cu"))


@dataclasses.dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler made of a program."""

    image: bytes
    assembly: str
    """PTX, for who wants to look."""
    remarks: str
    """What it had to say."""


def compile_program(program: Program, architecture: int) -> Compiled:
    """Compiles now, without a device. UnsupportedError has the compiler's words."""
    nvrtc = _nvrtc()
    handle = _asked(nvrtc.nvrtcCreateProgram(program.source.encode(), b"dmaplane.cu", 0, [], []))
    options = [one.encode() for one in program.options(architecture)]
    try:
        (result,) = nvrtc.nvrtcCompileProgram(handle, len(options), options)
        remarks = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, handle)
        if int(result):
            raise UnsupportedError(
                f"compiling {', '.join(program.files)} for sm_{architecture}",
                f"a compiler that knows this device and this source ({result.name}): {remarks}",
            )
        image = _bytes(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, handle)
        assembly = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, handle)
    finally:
        _asked(nvrtc.nvrtcDestroyProgram(handle))
    return Compiled(image, assembly, remarks)


def compiler_version() -> tuple[int, int]:
    """Of NVRTC."""
    major, minor = _asked(_nvrtc().nvrtcVersion())
    return int(major), int(minor)


def image_of(program: Program, architecture: int) -> bytes:
    """Machine code of @program: from the cache, or compiled and put there."""
    named = "\0".join(
        (
            program.source,
            *program.options(architecture),
            "{}.{}".format(*compiler_version()),
        )
    )
    path = cache_folder() / f"{hashlib.sha256(named.encode()).hexdigest()}.cubin"
    kept = _read(path)
    if kept:
        return kept
    image = compile_program(program, architecture).image
    _write(path, image)
    return image


def cache_folder() -> pathlib.Path:
    """Where programs are kept."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = pathlib.Path(given) if os.path.isabs(given) else pathlib.Path.home() / ".cache"
    return base / "dmaplane" / "cuda"


class Kernels:
    """The kernels of one device, loaded when they are first asked for."""

    __slots__ = ("_call", "_functions", "_lock", "_modules", "architecture")

    def __init__(self, call: Callable[..., Any], architecture: int) -> None:
        """@call: Driver.call with the device's context current. @architecture: 90 for sm_90."""
        self._call = call
        self._lock = threading.Lock()
        self._modules: dict[Program, Any] = {}
        self._functions: dict[tuple[Program, str], int] = {}
        self.architecture = architecture

    def function(self, program: Program, name: str, *, shared_bytes: int = 0) -> int:
        """The handle of a kernel, which may use @shared_bytes a group."""
        key = program, name
        with self._lock:
            known = self._functions.get(key)
            if known is not None:
                return known
            if program not in self._modules:
                image = image_of(program, self.architecture)
                self._modules[program] = self._call("cuModuleLoadData", image)
            found = self._call("cuModuleGetFunction", self._modules[program], name.encode())
            if shared_bytes > 48 << 10:
                limit = importlib.import_module(
                    "cuda.bindings.driver"
                ).CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._call("cuFuncSetAttribute", found, limit, shared_bytes)
            self._functions[key] = int(found)
            return int(found)

    def close(self) -> None:
        """Unloads them; nothing may run any more."""
        with self._lock:
            modules, self._modules = self._modules, {}
            self._functions.clear()
        for module in modules.values():
            self._call("cuModuleUnload", module)


def _nvrtc() -> Any:
    try:
        nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise UnsupportedError(
            "compiling kernels", f"cuda-bindings and NVRTC: {PACKAGES} ({error})"
        ) from error
    return nvrtc


def _asked(answer: tuple[Any, ...]) -> Any:
    code, *values = answer
    if int(code):
        raise UnsupportedError("compiling kernels", f"a working NVRTC ({code.name})")
    return values[0] if len(values) == 1 else tuple(values)


def _bytes(size: Callable[..., Any], get: Callable[..., Any], handle: Any) -> bytes:
    # The binding writes into a bytes object. It has to be one that nobody else can have: those
    # of one byte are shared by the whole interpreter, so this one is never that short.
    length = int(_asked(size(handle)))
    room = bytes(length + 16)
    _asked(get(handle, room))
    return room[:length]


def _text(size: Callable[..., Any], get: Callable[..., Any], handle: Any) -> str:
    return _bytes(size, get, handle).rstrip(b"\0").decode(errors="replace").strip()


def _read(path: pathlib.Path) -> bytes:
    """What was kept; nothing if it is not there, not ours, or not of a plausible size."""
    try:
        with open(path, "rb") as file:
            told = os.fstat(file.fileno())
            if told.st_uid != os.geteuid() or not 0 < told.st_size <= _IMAGE_MAX:
                return b""
            image = file.read(_IMAGE_MAX + 1)
    except OSError:
        return b""  # it is only a cache: what is not there is compiled
    return image if image[:4] == b"\x7fELF" else b""


def _write(path: pathlib.Path, image: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(image)
        os.replace(file.name, path)
    except OSError:
        return  # a home that cannot be written costs a compilation a process
