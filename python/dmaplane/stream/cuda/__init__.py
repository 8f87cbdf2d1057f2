# SPDX-License-Identifier: MIT
"""Copy streams on a GPU of NVIDIA's: `open_device("cuda:0")`.

Needs the driver, and the packages of `pip install "dmaplane[gpu]"`: cuda-bindings, and NVRTC,
which compiles the kernels here for the device at hand. Importing this looks for neither;
open_cuda() does, and says what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmaplane._errors import InvalidError

if TYPE_CHECKING:
    from dmaplane.stream.cuda._device import CudaDevice

__all__ = ["open_cuda"]


def open_cuda(number: int = 0, **settings: Any) -> CudaDevice:
    """Opens device @number. @settings: the fields of CudaSettings (_settings.py).

    UnsupportedError says what is missing: the driver, a package, a device of that number.
    """
    from dmaplane.stream.cuda._device import CudaDevice
    from dmaplane.stream.cuda._settings import CudaSettings

    try:
        chosen = CudaSettings(**settings)
    except TypeError as error:
        raise InvalidError(
            "settings", str(error), fix=f"any of {', '.join(CudaSettings.__dataclass_fields__)}"
        ) from error
    return CudaDevice(number, chosen)
