# SPDX-License-Identifier: MIT
"""Layout: what one rank's KV cache looks like, byte for byte, and how it is told to a peer.

The memory of a pool is `[layers][blocks][block]`. A block is, K first,

    NHD   [2][block_tokens][heads][head_size]
    HND   [2][heads][block_tokens][head_size]
    mla   [block_tokens][head_size]     one latent vector a token, the same on every rank

`kv_heads` are the whole model's; a rank holds `heads` of them from `first_head` on. With more
ranks than heads each head is on `degree // kv_heads` neighbouring ranks.

A Layout is a value: checked when made, never changed, owner of nothing. Every Layout has
exactly one wire form of 128 bytes, and every 128 bytes are the wire form of one Layout or
of none: so equal fingerprints mean equal layouts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from dmaplane._errors import InvalidError, LayoutError

if TYPE_CHECKING:
    from typing_extensions import Self

Dtype = Literal["float32", "float16", "bfloat16", "float8_e4m3fn", "int8"]
Order = Literal["NHD", "HND"]
Kind = Literal["gqa", "mla"]
Preset = Literal["llama-3-8b", "llama-3-70b", "deepseek-v3"]

LAYOUT_BYTES: Final = 128
"""Length of the wire form."""
MODEL_BYTES_MAX: Final = 64
POOL_BYTES_MAX: Final = (1 << 63) - 1

_MAGIC: Final = b"DMKV"
_VERSION: Final = 1
_WIRE: Final = struct.Struct("<4sHH6I4B64s28x")
assert _WIRE.size == LAYOUT_BYTES

_LIMITS: Final = {
    "layers": (1, 1024),
    "kv_heads": (1, 1024),
    "head_size": (1, 65536),
    "block_tokens": (1, 4096),
    "degree": (1, 1024),
    "rank": (0, 1023),
}
# NumPy has neither bfloat16 nor fp8: there unsigned integers of the same size stand in. The wire
# form has the position in this table, so a new dtype goes to its end.
_DTYPES: Final[dict[Dtype, str]] = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float8_e4m3fn": "u1",
    "int8": "i1",
}
_ORDERS: Final = get_args(Order)
_KINDS: Final = get_args(Kind)
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "dtype": tuple(_DTYPES),
    "order": _ORDERS,
    "kind": _KINDS,
}

# From the models' published config.json: num_hidden_layers; num_key_value_heads and head_dim, or
# for multi-head latent attention kv_lora_rank 512 + qk_rope_head_dim 64 in one vector.
_PRESETS: Final[dict[str, tuple[int, int, int, Kind]]] = {
    "llama-3-8b": (32, 8, 128, "gqa"),
    "llama-3-70b": (80, 8, 128, "gqa"),
    "deepseek-v3": (61, 1, 576, "mla"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """What a KV cache looks like on one rank. InvalidError names the first field that is wrong."""

    layers: int
    kv_heads: int
    """Of the whole model, not of this rank."""
    head_size: int
    dtype: Dtype
    block_tokens: int
    order: Order = "NHD"
    kind: Kind = "gqa"
    rank: int = 0
    """Of tensor parallelism, 0 .. degree - 1."""
    degree: int = 1
    model: str = ""
    """A name or a digest of the weights: caches of two models are not one another's."""

    def __post_init__(self) -> None:
        for field, (least, most) in _LIMITS.items():
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InvalidError(field, f"{value!r} is no int", fix=f"{least} .. {most}")
            if not least <= value <= most:
                raise InvalidError(field, f"{value}", fix=f"{least} .. {most}")
        for field, known in _CHOICES.items():
            value = getattr(self, field)
            if not isinstance(value, str) or value not in known:
                raise InvalidError(field, f"{value!r} is none", fix=f"one of {', '.join(known)}")
        if self.rank >= self.degree:
            raise InvalidError("rank", f"{self.rank} of {self.degree}", fix="below degree")
        if self.kind == "mla" and self.kv_heads != 1:
            raise InvalidError("kv_heads", f"{self.kv_heads} of mla", fix="1: one latent vector")
        if self.kv_heads % self.degree and self.degree % self.kv_heads:
            raise InvalidError(
                "degree",
                f"{self.kv_heads} heads on {self.degree} ranks",
                fix="one has to divide the other",
            )
        _model_bytes(self.model)

    @classmethod
    def of(
        cls,
        name: Preset,
        *,
        dtype: Dtype = "bfloat16",
        block_tokens: int = 16,
        order: Order = "NHD",
        rank: int = 0,
        degree: int = 1,
    ) -> Self:
        """The layout of a well-known model: "llama-3-8b", "llama-3-70b" or "deepseek-v3"."""
        if name not in _PRESETS:
            raise InvalidError("name", f"{name!r} is none", fix=f"one of {', '.join(_PRESETS)}")
        layers, kv_heads, head_size, kind = _PRESETS[name]
        return cls(
            layers=layers,
            kv_heads=kv_heads,
            head_size=head_size,
            dtype=dtype,
            block_tokens=block_tokens,
            order=order,
            kind=kind,
            rank=rank,
            degree=degree,
            model=name,
        )

    def for_rank(self, rank: int, degree: int) -> Self:
        """The same cache as rank @rank of @degree has it."""
        return dataclasses.replace(self, rank=rank, degree=degree)

    # ---- what is in it

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """An element in NumPy; an unsigned integer of its size where NumPy has no such type."""
        return np.dtype(_DTYPES[self.dtype])

    @property
    def item_bytes(self) -> int:
        """Of one element."""
        return self.numpy_dtype.itemsize

    @property
    def heads(self) -> int:
        """How many heads this rank holds."""
        return max(1, self.kv_heads // self.degree)

    @property
    def first_head(self) -> int:
        """The first of them, counted in the whole model."""
        return self.rank * self.kv_heads // self.degree

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Of one block of one layer, as an array of `numpy_dtype`."""
        if self.kind == "mla":
            return self.block_tokens, self.head_size
        if self.order == "NHD":
            return 2, self.block_tokens, self.heads, self.head_size
        return 2, self.heads, self.block_tokens, self.head_size

    @property
    def token_bytes(self) -> int:
        """Of one token in one layer, K and V, on this rank."""
        return self.heads * self.head_size * self.item_bytes * (1 if self.kind == "mla" else 2)

    @property
    def block_bytes(self) -> int:
        """Of one block in one layer."""
        return self.block_tokens * self.token_bytes

    def strides(self) -> dict[str, int]:
        """Bytes from one to the next of "kv", "token", "head" and "element", inside a block.

        0 for "kv" and "head" of mla, which has neither.
        """
        item = self.item_bytes
        vector = self.head_size * item
        if self.kind == "mla":
            return {"kv": 0, "token": vector, "head": 0, "element": item}
        half = self.block_bytes // 2
        if self.order == "NHD":
            return {"kv": half, "token": self.heads * vector, "head": vector, "element": item}
        return {"kv": half, "token": vector, "head": self.block_tokens * vector, "element": item}

    def layer_bytes(self, blocks: int) -> int:
        """Of one layer of a pool of @blocks."""
        return self.pool_bytes(blocks) // self.layers

    def pool_bytes(self, blocks: int) -> int:
        """Of a pool of @blocks, all layers."""
        length = self.layers * blocks * self.block_bytes
        if not 0 <= length <= POOL_BYTES_MAX:
            raise InvalidError("blocks", f"{blocks}", fix="0 or more, below 2**63 bytes in all")
        return length

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold @tokens."""
        if tokens < 0:
            raise InvalidError("tokens", f"{tokens}", fix="0 or more")
        return -(-tokens // self.block_tokens)

    # ---- what peers compare

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that differ when any field does."""
        return hashlib.sha256(self.encode()).digest()[:16]

    def difference(self, other: Layout) -> tuple[tuple[str, object, object], ...]:
        """(field, ours, theirs) of every field that is not the same."""
        pairs = (
            (each.name, getattr(self, each.name), getattr(other, each.name))
            for each in dataclasses.fields(self)
        )
        return tuple((name, ours, theirs) for name, ours, theirs in pairs if ours != theirs)

    def encode(self) -> bytes:
        """The wire form: 128 bytes, little-endian."""
        model = _model_bytes(self.model)
        return _WIRE.pack(
            _MAGIC,
            _VERSION,
            LAYOUT_BYTES,
            self.layers,
            self.kv_heads,
            self.head_size,
            self.block_tokens,
            self.rank,
            self.degree,
            tuple(_DTYPES).index(self.dtype),
            _ORDERS.index(self.order),
            _KINDS.index(self.kind),
            len(model),
            model,
        )

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Self:
        """The Layout of a wire form; LayoutError for all that is none."""
        data = bytes(data)
        if len(data) != LAYOUT_BYTES:
            raise LayoutError(f"{len(data)} bytes are no layout; it has {LAYOUT_BYTES}")
        magic, version, length, *numbers, dtype, order, kind, model_bytes, model = _WIRE.unpack(
            data
        )
        if magic != _MAGIC:
            raise LayoutError("this is no layout; send Layout.encode()")
        if (version, length) != (_VERSION, LAYOUT_BYTES):
            raise LayoutError(
                f"a layout of version {version}, {length} bytes; this side knows version "
                f"{_VERSION}, {LAYOUT_BYTES} bytes: the same dmaplane on both sides"
            )
        for field, value, known in (
            ("dtype", dtype, tuple(_DTYPES)),
            ("order", order, _ORDERS),
            ("kind", kind, _KINDS),
        ):
            if value >= len(known):
                raise LayoutError(f"{field} {value} is unknown here; this side may be older")
        if model_bytes > MODEL_BYTES_MAX:
            raise LayoutError(f"a model's name of {model_bytes} bytes; {MODEL_BYTES_MAX} at most")
        layers, kv_heads, head_size, block_tokens, rank, degree = numbers
        try:
            made = cls(
                layers=layers,
                kv_heads=kv_heads,
                head_size=head_size,
                dtype=tuple(_DTYPES)[dtype],
                block_tokens=block_tokens,
                order=_ORDERS[order],
                kind=_KINDS[kind],
                rank=rank,
                degree=degree,
                model=model[:model_bytes].decode(),
            )
        except UnicodeDecodeError as error:
            raise LayoutError("the model's name is not UTF-8") from error
        except InvalidError as error:
            raise LayoutError(f"a layout that cannot be: {error}") from error
        if made.encode() != data:
            raise LayoutError("bytes that a layout leaves zero are not zero")
        return made


def _model_bytes(model: str) -> bytes:
    """@model in UTF-8. It is shown in errors and logs of a peer: nothing unprintable."""
    if not isinstance(model, str) or not model.isprintable():
        raise InvalidError("model", f"{model!r} is no name", fix="printable text")
    encoded = model.encode()
    if len(encoded) > MODEL_BYTES_MAX:
        raise InvalidError(
            "model", f"{len(encoded)} bytes", fix=f"{MODEL_BYTES_MAX} at most; a digest fits"
        )
    return encoded
