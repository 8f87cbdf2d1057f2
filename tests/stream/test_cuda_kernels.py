# SPDX-License-Identifier: MIT
"""Kernels as NVRTC makes them, and structs as it lays them out: no GPU, no driver.

What a kernel must contain is looked up in its PTX, between its .entry and the next.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any

import pytest

from dmaplane import UnsupportedError
from dmaplane.stream.cuda import _entries, _program, _settings
from dmaplane.stream.cuda._lane import batch_attributes

WIDE = {16: "v4.u32", 8: "u64", 4: "u32", 1: "u8"}


@pytest.fixture(scope="module")
def compiler() -> None:
    try:
        _program.compiler_version()
    except UnsupportedError as missing:
        pytest.skip(f"missing-package: {missing}")


def _entry(assembly: str, name: str) -> str:
    found = re.search(rf"\.entry {name}\(.*?(?=\.entry |\Z)", assembly, re.DOTALL)
    assert found, f"no kernel {name}"
    return found.group()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("word", "architecture"), [(16, 80), (16, 90), (16, 100), (8, 90), (4, 90), (1, 90)]
)
def test_every_copy_kernel_compiles_and_has_its_loads_before_its_stores(
    word: int, architecture: int
) -> None:
    made = _program.compile_program(_program.copy_program(word, "streaming"), architecture)
    assert made.image[:4] == b"\x7fELF"
    assert made.remarks == ""
    slots = 8 if word == 16 else 16
    for form in ("grid", "list"):
        for way, load_hint, store_hint in (("h2d", ".cs", ""), ("d2h", "", ".cs"), ("d2d", "", "")):
            for inline in ("", "_inline"):
                code = _entry(made.assembly, f"{form}_{way}{inline}_{word}")
                load, store = (
                    rf"ld\.global{load_hint}\.{WIDE[word]} ",
                    rf"st\.global{store_hint}\.{WIDE[word]} ",
                )
                loads = [one.start() for one in re.finditer(load, code)]
                stores = [one.start() for one in re.finditer(store, code)]
                # As many in flight as there are slots, whatever the rest of a row adds.
                assert len(loads) >= slots, (form, way, inline)
                assert len(stores) >= slots
                assert sum(at < stores[0] for at in loads) >= slots, (form, way, inline)


@pytest.mark.usefixtures("compiler")
def test_hints_are_those_asked_for() -> None:
    for hint, words in (("plain", "ld.global.v4"), ("uncached", "ld.global.L1::no_allocate.v4")):
        made = _program.compile_program(_program.copy_program(16, hint), 90)
        assert _entry(made.assembly, "grid_h2d_16").count(words) >= 8
        assert ".cs" not in made.assembly


@pytest.mark.usefixtures("compiler")
def test_bulk_kernels_are_there_from_sm_90_on_and_wait_for_what_they_need() -> None:
    assert ".entry" not in _program.compile_program(_program.BULK, 80).assembly
    made = _program.compile_program(_program.BULK, 90)
    assert made.remarks == ""
    for slots in _settings.BULK_SLOTS:
        for form in ("grid", "list"):
            code = _entry(made.assembly, f"bulk_{form}_{slots}")
            for instruction in (
                "mbarrier.init.shared::cta.b64",
                "fence.mbarrier_init.release.cluster",
                "fence.proxy.async.shared::cta",
                "mbarrier.arrive.expect_tx.shared::cta.b64",
                "mbarrier.try_wait.parity.shared::cta.b64",
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes",
                "cp.async.bulk.global.shared::cta.bulk_group",
                "cp.async.bulk.commit_group",
                f"cp.async.bulk.wait_group.read {slots // 2};",
                "cp.async.bulk.wait_group 0;",
            ):
                assert instruction in code, (slots, form, instruction)
            assert code.rindex("wait_group 0;") > code.rindex("commit_group")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("architecture", [80, 90])
def test_ceilings_have_every_word_in_flight_at_once(architecture: int) -> None:
    made = _program.compile_program(_program.CEILING, architecture)
    assert made.remarks == ""
    hints = {"plain": "", "streaming": ".cs", "uncached": ".L1::no_allocate"}
    for name, hint in hints.items():
        for words in (2, 4, 8):
            code = _entry(made.assembly, f"read_{words}_{name}")
            assert code.count(f"ld.global{hint}.v4.u32") == words
            code = _entry(made.assembly, f"write_{words}_{name}")
            assert code.count(f"st.global{hint}.v4.u32") == words
    assert "fma.rn.f32" in _entry(made.assembly, "burn")


def _offsets(struct: str, fields: Any) -> str:
    """Statements that do not compile unless the struct is laid out as ctypes has it."""
    told = [
        f"static_assert(__builtin_offsetof({struct}, {name})"
        f' == {getattr(fields, name).offset}, "");'
        for name, *_ in fields._fields_
    ]
    return "\n".join([*told, f'static_assert(sizeof({struct}) == {ctypes.sizeof(fields)}, "");'])


class _Shifted(ctypes.Structure):
    """`struct Copy` with two fields of one size changed round: the check has to notice."""

    _fields_ = tuple(
        _entries.CopyArguments._fields_[number] for number in (0, 2, 1, 3, 4, 5, 6, 7, 8, 9, 10)
    )


@pytest.mark.usefixtures("compiler")
def test_structs_of_kernels_are_laid_out_as_ctypes_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = _program.Program(("words.cu", "copy.cu", "ceiling.cu")).source
    pairs = [
        ("Copy", _entries.CopyArguments),
        ("InlineCopy", _entries.InlineArguments),
        ("Sweep", _entries.SweepArguments),
    ]
    asserted = "\n".join(_offsets(struct, fields) for struct, fields in pairs)
    monkeypatch.setattr(_program.Program, "source", source + "\n" + asserted)
    _program.compile_program(_program.Program(()), 90)
    monkeypatch.setattr(_program.Program, "source", source + "\n" + _offsets("Copy", _Shifted))
    with pytest.raises(UnsupportedError, match="static"):
        _program.compile_program(_program.Program(()), 90)


def test_inlined_descriptors_have_one_size_on_both_sides() -> None:
    source = _program.Program(("copy.cu",)).source
    found = re.search(r"INLINE_BYTES = (\d+)", source)
    assert found
    assert int(found.group(1)) == _entries.INLINE_BYTES
    # What every device takes as parameters.
    assert ctypes.sizeof(_entries.InlineArguments) <= 4096


def test_attributes_of_a_batch_are_laid_out_as_the_bindings_have_them() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="missing-package: cuda-bindings")
    theirs = driver.CUmemcpyAttributes()
    for order, number in _settings.ORDERS.items():
        theirs.srcAccessOrder = driver.CUmemcpySrcAccessOrder(number)
        theirs.flags = 1
        ours = batch_attributes(order=order, overlap=True, version=13010)
        size = ctypes.sizeof(ours)
        assert bytes(ours) == ctypes.string_at(theirs.getPtr(), size)
    names = {
        "stream": "CU_MEMCPY_SRC_ACCESS_ORDER_STREAM",
        "during-call": "CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL",
        "any": "CU_MEMCPY_SRC_ACCESS_ORDER_ANY",
    }
    for order, name in names.items():
        assert int(getattr(driver.CUmemcpySrcAccessOrder, name)) == _settings.ORDERS[order]


@pytest.mark.parametrize(("version", "flags"), [(12080, 0), (13000, 0), (13010, 1), (13030, 1)])
def test_overlap_is_asked_for_only_where_it_means_what_it_says(version: int, flags: int) -> None:
    assert batch_attributes(order="stream", overlap=True, version=version).flags == flags
    assert batch_attributes(order="stream", overlap=False, version=version).flags == 0


@pytest.mark.usefixtures("compiler")
def test_a_program_is_compiled_once_and_kept_whole(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = _program.image_of(_program.CEILING, 90)
    (kept,) = _program.cache_folder().iterdir()
    assert kept.read_bytes() == image
    monkeypatch.setattr(_program, "compile_program", lambda *_: pytest.fail("compiled twice"))
    assert _program.image_of(_program.CEILING, 90) == image
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept.write_bytes(b"torn")
    assert _program.image_of(_program.CEILING, 90)[:4] == b"\x7fELF"
    assert kept.read_bytes()[:4] == b"\x7fELF"
    _program.image_of(_program.CEILING, 80)
    assert len(list(_program.cache_folder().iterdir())) == 2


@pytest.mark.usefixtures("compiler")
def test_a_cache_that_cannot_be_written_costs_a_compilation_and_no_more(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert _program.image_of(_program.CEILING, 90)[:4] == b"\x7fELF"


@pytest.mark.usefixtures("compiler")
def test_what_the_compiler_says_is_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_program.Program, "source", "this is no program")
    with pytest.raises(UnsupportedError, match="error: expected a declaration"):
        _program.compile_program(_program.CEILING, 90)
