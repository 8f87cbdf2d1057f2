# SPDX-License-Identifier: MIT
"""Without a driver or a package everything imports, and who asks for a GPU is told what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from dmaplane import InvalidError, UnsupportedError
from dmaplane.stream import open_device
from dmaplane.stream.cuda import _driver


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The driver is looked for anew, before and after."""
    _driver.driver.cache_clear()
    yield
    _driver.driver.cache_clear()


def test_no_driver_is_said_and_never_replaced_by_the_simulation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_driver, "LIBRARY", "libcuda-that-is-nowhere.so")
    for name in ("cuda", "cuda:1", "auto"):
        with pytest.raises(UnsupportedError) as caught:
            open_device(name)
        assert "NVIDIA's driver (libcuda-that-is-nowhere.so" in str(caught.value)
        assert ('open_device("sim")' in str(caught.value)) == (name == "auto")


def test_no_package_is_said_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(UnsupportedError) as caught:
        open_device("cuda")
    assert 'pip install "dmaplane[gpu]"' in str(caught.value)


def test_a_setting_there_is_not_is_named_before_anything_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_driver, "LIBRARY", "libcuda-that-is-nowhere.so")
    with pytest.raises(InvalidError, match="grups") as caught:
        open_device("cuda", grups=4)
    assert "groups" in caught.value.fix
    with pytest.raises(InvalidError, match="threads"):
        open_device("cuda", threads=100)


def test_importing_looks_for_no_driver_and_no_package() -> None:
    program = (
        "import sys, dmaplane.stream.cuda, dmaplane.stream.cuda._device;"
        "print([name for name in sys.modules if name == 'cuda' or name.startswith('cuda.')]);"
        "print('libcuda' in open('/proc/self/maps').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[]", "False"]


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (2, "NoMemoryError", "free some"),
        (700, "DeviceLostError", "cuda:7"),
        (214, "DeviceLostError", "open it again"),
        (801, "UnsupportedError", "newer driver"),
        (800, "NotAllowedError", "not allowed"),
        (712, "InvalidError", "unregister that first"),
        (1, "InvalidError", "refused"),
    ],
)
def test_each_answer_of_the_driver_has_its_error(code: int, kind: str, words: str) -> None:
    error = _driver.error_of(code, f"cuCall: CUDA_ERROR_{code}", device="cuda:7")
    assert type(error).__name__ == kind
    assert words in str(error)
    assert f"CUDA_ERROR_{code}" in str(error)
    assert error.errno == code
    assert _driver.is_sticky(code) == (kind == "DeviceLostError")
