# SPDX-License-Identifier: MIT
"""Views: arrays and tensors on the memory of a pool, without a copy.

A view is made anew each time and kept by nobody here: it holds the pool's buffer while it
lives (L3), and the pool cannot be closed meanwhile. NumPy has no bfloat16 and no fp8: there a
view shows unsigned integers of the same size, bit for bit. PyTorch has them all.
Both speak DLPack: np.from_dlpack(pool.tensor(0)), torch.from_dlpack(pool.layer(0)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmaplane._errors import InvalidError, UnsupportedError

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmaplane._buffer import Buffer, BufferRange
    from dmaplane.kv._layout import Layout


class Views:
    """Where layers and blocks of a layout are in a buffer, and arrays of them."""

    __slots__ = ("blocks", "buffer", "layer_bytes", "layout")

    def __init__(self, buffer: Buffer, layout: Layout, blocks: int) -> None:
        self.buffer = buffer
        self.layout = layout
        self.blocks = blocks
        self.layer_bytes = layout.layer_bytes(blocks)

    def offset(self, layer: int) -> int:
        """Bytes into the buffer where @layer begins."""
        if not 0 <= layer < self.layout.layers:
            raise InvalidError(
                "layer", f"there is no {layer}", fix=f"0 .. {self.layout.layers - 1}"
            )
        return layer * self.layer_bytes

    def range(self, layer: int) -> BufferRange:
        """A whole layer."""
        start = self.offset(layer)
        return self.buffer[start : start + self.layer_bytes]

    def layer(self, layer: int) -> npt.NDArray[Any]:
        """[blocks, *block_shape]."""
        shape = (self.blocks, *self.layout.block_shape)
        return self.range(layer).numpy(shape, self.layout.numpy_dtype)

    def block(self, layer: int, block: int) -> npt.NDArray[Any]:
        """[*block_shape]."""
        if not 0 <= block < self.blocks:
            raise InvalidError("block", f"there is no {block}", fix=f"0 .. {self.blocks - 1}")
        start = self.offset(layer) + block * self.layout.block_bytes
        part = self.buffer[start : start + self.layout.block_bytes]
        return part.numpy(self.layout.block_shape, self.layout.numpy_dtype)

    def tensor(self, layer: int) -> Any:
        """layer() as a PyTorch tensor of the layout's own type."""
        shape = (self.blocks, *self.layout.block_shape)
        return self.range(layer).tensor(shape, self.layout.dtype)


def keys_of(layout: Layout, layer: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The K of a layer's view as [blocks, tokens, heads, size], whatever its order; no copy.

    Of the latent vectors of "mla", which have no heads: [blocks, tokens, 1, size].
    """
    if layout.kind == "mla":
        return layer[:, :, None, :]
    half = layer[:, 0]
    return half if layout.order == "NHD" else half.swapaxes(1, 2)


def values_of(layout: Layout, layer: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The V of a layer's view as [blocks, tokens, heads, size], whatever its order; no copy."""
    if layout.kind == "mla":
        raise UnsupportedError("V of a latent cache", "kind gqa: mla has one vector per token")
    half = layer[:, 1]
    return half if layout.order == "NHD" else half.swapaxes(1, 2)
