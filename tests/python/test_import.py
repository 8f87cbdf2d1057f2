# SPDX-License-Identifier: MIT
"""What `import dmaplane` costs, brings, and says it brings (P1, P2)."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import types

import dmaplane


def _fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_import_is_light() -> None:
    code = (
        "import time, numpy; began = time.process_time(); import dmaplane;"
        "print(time.process_time() - began)"
    )
    best = min(float(_fresh(code)) for _ in range(5))
    assert best <= 0.150, f"import dmaplane took {best * 1000:.0f} ms beyond numpy"


def test_import_brings_nothing_heavy() -> None:
    loaded = _fresh("import dmaplane, sys; print(*sys.modules)").split()
    heavy = {"torch", "typer", "rich", "cupy", "cuda", "pytest", "hypothesis", "click"}
    assert not heavy & set(loaded)


def test_export_list_is_what_there_is() -> None:
    present = {
        name
        for name, value in vars(dmaplane).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    listed = set(dmaplane.__all__) - {"__version__", "abi"}
    assert present == listed
    assert list(dmaplane.__all__) == sorted(dmaplane.__all__, key=lambda n: (_rank(n), n))


def _rank(name: str) -> int:
    """Constants, then classes, then the rest: the order ruff keeps."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2


def test_modules_at_the_top_are_private_or_packages() -> None:
    assert dmaplane.__file__ is not None
    folder = pathlib.Path(dmaplane.__file__).parent
    public = {one.stem for one in folder.glob("*.py")} - {"__init__", "__main__", "demo"}
    assert all(name.startswith("_") for name in public), public
    assert (folder / "py.typed").exists()


def test_public_things_are_documented() -> None:
    for name in dmaplane.__all__:
        value = getattr(dmaplane, name)
        if isinstance(value, type):
            assert value.__doc__, name
            for method, body in vars(value).items():
                if isinstance(body, types.FunctionType) and not method.startswith("_"):
                    assert body.__doc__, f"{name}.{method}"
