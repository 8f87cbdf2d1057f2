# SPDX-License-Identifier: MIT
"""Every rule of tools/tidy.py passes on a good small tree and fails on each bad one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"house_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tidy = load("tidy")
abi = load("abi")

CORE_LICENCE = "/* SPDX-License-Identifier: GPL-2.0 OR MIT */\n"
MIT = "/* SPDX-License-Identifier: MIT */\n"
PYTHON_MIT = "# SPDX-License-Identifier: MIT\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree in which every rule that needs no built library passes."""
    good = {
        "core/types.h": CORE_LICENCE + "#include <linux/types.h>\n#include <stddef.h>\n",
        "core/ring.h": CORE_LICENCE + '#include "types.h"\n__u32 dmp_ring_next(__u32 i);\n',
        "core/ring.c": CORE_LICENCE
        + '#include "ring.h"\n__u32 dmp_ring_next(__u32 i)\n{\n\treturn i + 1;\n}\n',
        "embedded/libdmaplane.h": MIT
        + "#ifndef L_H\n#define L_H\n#define DMP_PUBLIC\n"
        + "DMP_PUBLIC int dmp_open(void *p);\n#endif\n",
        "embedded/libdmaplane.map": MIT + "V_1 {\nglobal:\n\tdmp_open;\nlocal:\n\t*;\n};\n",
        "kernel/a.c": "// SPDX-License-Identifier: GPL-2.0\n"
        + '#include <linux/mutex.h>\n#include "ring.h"\n\n'
        + "void dmp_a_locked(struct dmp_a *a,\n\t\t  int b)\n"
        + "{\n\tlockdep_assert_held(&a->lock);\n}\n",
        "python/dmaplane/__init__.py": PYTHON_MIT + "import os\nimport numpy\n",
    }
    for name, text in good.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("include/uapi/dmaplane.h", "tests/contract/layout.c", "tools/abi.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "python/dmaplane/_abi.py", tmp_path / "python/dmaplane/_abi.py")
    return tmp_path


def rule(name: str, root: Path) -> list[str]:
    problems: list[str] = getattr(tidy, f"check_{name}")(root)
    return problems


NEED_NO_LIBRARY = [
    check.__name__.removeprefix("check_")
    for check in tidy.CHECKS
    if check.__name__ != "check_exports"
]


@pytest.mark.parametrize("name", NEED_NO_LIBRARY)
def test_a_good_tree_passes(name: str, tree: Path) -> None:
    assert rule(name, tree) == []


LONG_FUNCTION = "int f(void)\n{\n" + "\t;\n" * 100 + "\treturn 0;\n}\n"

BAD = [
    ("include_arrows", "core/a.c", "#include <stdio.h>\n"),
    ("include_arrows", "core/a.c", '#include "../embedded/libdmaplane.h"\n'),
    ("include_arrows", "core/ring.h", "#include <stddef.h>\n"),
    ("include_arrows", "include/uapi/a.h", "#include <stdint.h>\n"),
    ("include_arrows", "embedded/a.c", '#include "../tests/contract/layout.c"\n'),
    ("include_arrows", "bench/a.c", '#include "../core/ring.h"\n'),
    ("include_arrows", "kernel/a.c", '#include "../embedded/libdmaplane.h"\n'),
    ("include_arrows", "kernel/a.c", "#include <stdio.h>\n"),
    ("import_arrows", "python/dmaplane/_a.py", "import torch\n"),
    ("import_arrows", "python/dmaplane/_a.py", "from tools import abi\n"),
    ("import_arrows", "python/dmaplane/_a.py", "import rich.table\n"),
    ("import_arrows", "python/dmaplane/_a.py", "try:\n import cuda\nexcept ImportError:\n ...\n"),
    ("import_arrows", "python/dmaplane/_a.py", "library.dmp_ring_push(1)\n"),
    ("names", "core/utils.c", ""),
    ("names", "python/dmaplane/_ring_helpers.py", ""),
    ("names", "python/dmaplane/_a.py", "class BufferManager:\n"),
    ("names", "embedded/a.c", "struct dmp_misc {\n"),
    ("words", "docs/a.md", "TO" + "DO: write\n"),
    ("words", "core/a.c", "/* for " + "now */\n"),
    ("words", "docs/a.md", "see /ro" + "ot/a\n"),
    ("words", "README.md", "from https://py" + "pi.org/simple\n"),
    ("words", "core/a.c", "int dmp_ring_push_" + "unlocked(void);\n"),
    ("sizes", "core/a.c", "\n" * 601),
    ("sizes", "core/a.c", LONG_FUNCTION),
    ("licences", "core/a.c", MIT),
    ("licences", "embedded/a.c", "int a;\n"),
    ("licences", "kernel/a.c", CORE_LICENCE),
    ("licences", "include/uapi/a.h", CORE_LICENCE),
    ("kernel_habits", "kernel/a.c", "static void\ndmp_a_locked(void)\n{\n\tfree();\n}\n"),
    ("kernel_habits", "kernel/a.c", "\tBUG" + "_ON(a);\n"),
    ("kernel_habits", "kernel/a.c", '\tpr_info("%px", a);\n'),
    ("kernel_habits", "kernel/a.c", "#if LINUX_VERSION_CODE > 1\n"),
    ("headers_alone", "core/a.h", "struct a {\n\t__u32 b;\n};\n"),
    ("headers_alone", "core/a.h", '#include "types.h"\nstruct a {\n\t__u32 b;\n};\n'),
    ("core_freestanding", "core/a.c", "int a(int b)\n{\n\treturn b\n}\n"),
    ("core_freestanding", "core/a.c", "int puts(const char *);\nint a(void);\nint a(void)\n"
     '{\n\treturn puts("");\n}\n'),
    ("core_freestanding", "core/a.c", "double a(double b);\ndouble a(double b)\n"
     "{\n\treturn b * 2;\n}\n"),
    ("generated", "python/dmaplane/_abi.py", "QUERY = 1\n"),
    ("generated", "tests/contract/layout.c", "\n"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "text"), BAD)
def test_a_bad_file_is_found(name: str, path: str, text: str, tree: Path) -> None:
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).write_text(text)
    problems = rule(name, tree)
    assert problems
    if name != "generated":
        assert any(Path(path).name in problem for problem in problems)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_field_of_another_size_breaks_the_layout(tree: Path) -> None:
    edit(tree / "include/uapi/dmaplane.h", "__u32 abi_major;", "__aligned_u64 abi_major;")
    assert rule("contract_compiles", tree)


@pytest.mark.parametrize("word", ["int class;", "long wide;"])
def test_a_header_that_is_not_portable_is_found(word: str, tree: Path) -> None:
    """`class` is no name in C++; `long` has another size with -m32."""
    edit(
        tree / "include/uapi/dmaplane.h",
        "#endif /* _UAPI_DMAPLANE_H */",
        f"struct a {{\n\t{word}\n}};\n#endif",
    )
    with (tree / "tests/contract/layout.c").open("a") as layout:
        layout.write("ASSERT_THAT(sizeof(struct a) == sizeof(struct a));\n")
        if "long" in word:
            layout.write("SIZE(a, 8);\n")
    assert rule("contract_compiles", tree)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("QUERY: Final = 0xDA00", "QUERY: Final = 0xDA01"),
        ("NODES_MAX: Final = 64", "NODES_MAX: Final = 65"),
        ('("abi_major", ctypes.c_uint32)', '("abi_major", ctypes.c_uint64)'),
        ('"itemsize": 64', '"itemsize": 72'),
        ('("abi_major", ctypes.c_uint32)', '("abi_mayor", ctypes.c_uint32)'),
    ],
)
def test_python_that_disagrees_with_c_is_found(old: str, new: str, tree: Path) -> None:
    edit(tree / "python/dmaplane/_abi.py", old, new)
    assert rule("abi_equal", tree)


@pytest.fixture
def built(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The good tree with its library, which exports exactly dmp_open."""
    source = tree / "embedded/open.c"
    source.write_text(MIT + "int dmp_open(void *p);\nint dmp_open(void *p)\n{\n\treturn !p;\n}\n")
    library = tree / "libdmaplane.so"
    compile_library(tree, source, library)
    monkeypatch.setitem(os.environ, "DMAPLANE_LIBRARY", str(library))
    return tree


def compile_library(root: Path, source: Path, library: Path) -> None:
    script = f"-Wl,--version-script={root / 'embedded/libdmaplane.map'}"
    result = tidy.run("gcc", "-shared", "-fPIC", source, script, "-o", library)
    assert result.returncode == 0, result.stderr


def test_equal_exports_pass(built: Path) -> None:
    assert rule("exports", built) == []


def test_a_function_without_a_map_entry_is_found(built: Path) -> None:
    edit(built / "embedded/libdmaplane.h", "#endif", "DMP_PUBLIC int dmp_new(void);\n#endif")
    problems = rule("exports", built)
    assert "libdmaplane.map lacks dmp_new" in problems
    assert "libdmaplane.so lacks dmp_new" in problems


def test_a_symbol_that_nobody_declared_is_found(built: Path) -> None:
    source = built / "embedded/open.c"
    source.write_text(source.read_text() + "int leak;\n")
    edit(built / "embedded/libdmaplane.map", "dmp_open;", "dmp_open;\n\tleak;")
    compile_library(built, source, built / "libdmaplane.so")
    assert rule("exports", built) == ["libdmaplane.so shows leak"]


def test_a_missing_library_is_found(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(os.environ, "DMAPLANE_LIBRARY", raising=False)
    assert rule("exports", tree) == ["libdmaplane.so is not installed; run tools/setup.sh"]


# ---- the generator refuses a header that breaks its rules


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t__u32 abi_major;", "\t__u8 abi_major;", "unwritten padding"),
        ("\t__u32 abi_major;", "\tint abi_major;", "cannot read"),
        ("\t__u32 abi_major;", "\tvoid *abi_major;", "cannot read"),
        ("struct dmp_query {\n\t__u32 size;", "struct dmp_query {\n\t__u32 length;", "start with"),
        ("DMP_IOCTL_TYPE, 0x01", "DMP_IOCTL_TYPE, 0x00", "used twice"),
        ("struct dmp_topology {", "struct dmp_topografy {", "has no struct"),
    ],
)
def test_the_generator_refuses_a_bad_header(old: str, new: str, message: str) -> None:
    text = (ROOT / "include/uapi/dmaplane.h").read_text()
    assert old in text
    with pytest.raises(abi.HeaderError, match=message):
        abi.parse(text.replace(old, new, 1))


def test_generating_twice_gives_the_same(tree: Path) -> None:
    contract = abi.parse((tree / "include/uapi/dmaplane.h").read_text())
    assert abi.python_text(contract) == (tree / "python/dmaplane/_abi.py").read_text()
    assert abi.layout_text(contract) == (tree / "tests/contract/layout.c").read_text()
