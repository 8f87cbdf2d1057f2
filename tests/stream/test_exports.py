# SPDX-License-Identifier: MIT
"""What `dmaplane.stream` brings, what it says it brings, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
import types

from dmaplane import stream


def _loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_importing_the_package_brings_no_streams() -> None:
    assert not any(name.startswith("dmaplane.stream") for name in _loaded_by("import dmaplane"))


def test_streams_and_the_simulation_bring_nothing_of_cuda() -> None:
    code = 'import dmaplane.stream as s; s.open_device("sim").close()'
    loaded = _loaded_by(code)
    assert "dmaplane.stream.sim" in loaded
    assert not {name for name in loaded if name.partition(".")[0] in ("cuda", "torch", "cupy")}
    assert not any(name.startswith("dmaplane.stream.cuda") for name in loaded)


def test_the_export_list_is_what_there_is() -> None:
    present = {
        name
        for name, value in vars(stream).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert present - {"annotations"} == set(stream.__all__)


def test_public_things_of_streams_are_documented() -> None:
    for name in stream.__all__:
        value = getattr(stream, name)
        if isinstance(value, type):
            assert value.__doc__, name
            for method, body in vars(value).items():
                if isinstance(body, types.FunctionType) and not method.startswith("_"):
                    assert body.__doc__, f"{name}.{method}"
