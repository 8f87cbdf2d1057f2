# SPDX-License-Identifier: MIT
"""Views of a pool: one memory, the right shape and strides, and held while they live (L3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest

import dmaplane
from dmaplane.kv import Dtype, Layout, Order, Pool

BLOCKS = 5
LAYERS = 3
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
ORDERS: tuple[Order, ...] = get_args(Order)


def _layout(dtype: Dtype = "float16", order: Order = "NHD") -> Layout:
    return Layout(
        layers=LAYERS, kv_heads=4, head_size=8, dtype=dtype, block_tokens=16, order=order, degree=2
    )


def _latent(dtype: Dtype = "bfloat16") -> Layout:
    return Layout(layers=LAYERS, kv_heads=1, head_size=24, dtype=dtype, block_tokens=16, kind="mla")


LAYOUTS = [_layout(dtype, order) for dtype in DTYPES for order in ORDERS]
LAYOUTS += [_latent(dtype) for dtype in DTYPES]
every_layout = pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda one: f"{one.kind}-{one.order}-{one.dtype}"
)


@pytest.fixture
def plane() -> Iterator[dmaplane.Plane]:
    with dmaplane.open(plane="embedded") as opened:
        yield opened
        assert opened.statistics().buffers == 0, "somebody still holds memory"


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="missing-package: torch")


def _numbered(pool: Pool) -> np.ndarray:
    """Fills all of the pool's bytes, each unlike its neighbours, and gives them."""
    whole = np.random.default_rng(7).integers(0, 256, len(pool.buffer), np.uint8)
    pool.buffer.numpy()[:] = whole
    return whole


@every_layout
def test_layer_and_block_show_the_bytes_where_the_layout_has_them(
    plane: dmaplane.Plane, layout: Layout
) -> None:
    with Pool(plane, layout, BLOCKS) as pool:
        whole = _numbered(pool)
        for n in range(LAYERS):
            start = pool.offset(n)
            layer = pool.layer(n)
            assert layer.shape == (BLOCKS, *layout.block_shape)
            assert layer.dtype == layout.numpy_dtype
            assert layer.flags.c_contiguous
            assert layer.strides[0] == layout.block_bytes
            assert layer.tobytes() == whole[start : start + layer.nbytes].tobytes()
            for b in range(BLOCKS):
                block = pool.block(n, b)
                assert block.shape == layout.block_shape
                assert np.shares_memory(block, layer[b])
                assert block.tobytes() == layer[b].tobytes()
                del block
            del layer


@every_layout
def test_keys_and_values_are_by_token_head_and_element_in_either_order(
    plane: dmaplane.Plane, layout: Layout
) -> None:
    strides = layout.strides()
    with Pool(plane, layout, BLOCKS) as pool:
        whole = _numbered(pool)
        views = [(pool.keys(1), 0)]
        if layout.kind == "mla":
            with pytest.raises(dmaplane.UnsupportedError, match="one vector per token"):
                pool.values(1)
        else:
            views.append((pool.values(1), 1))
        for view, half in views:
            assert view.shape == (BLOCKS, 16, layout.heads, layout.head_size)
            assert view.strides[0] == layout.block_bytes
            assert (view.strides[1], view.strides[3]) == (strides["token"], strides["element"])
            assert layout.kind == "mla" or view.strides[2] == strides["head"]
            for b, token, head, element in (
                (0, 0, 0, 0),
                (4, 15, layout.heads - 1, 7),
                (2, 9, 0, 3),
            ):
                at = pool.offset(1) + b * layout.block_bytes + half * strides["kv"]
                at += (
                    token * strides["token"] + head * strides["head"] + element * layout.item_bytes
                )
                expected = whole[at : at + layout.item_bytes].tobytes()
                assert view[b, token, head, element].tobytes() == expected
        del view
        views.clear()


@every_layout
def test_tensor_is_of_the_layouts_own_type_and_on_the_same_memory(
    plane: dmaplane.Plane, torch: Any, layout: Layout
) -> None:
    with Pool(plane, layout, BLOCKS) as pool:
        _numbered(pool)
        for n in range(LAYERS):
            tensor, layer = pool.tensor(n), pool.layer(n)
            assert tensor.dtype is getattr(torch, layout.dtype)
            assert tuple(tensor.shape) == layer.shape
            assert tensor.data_ptr() == layer.ctypes.data
            assert [one * layout.item_bytes for one in tensor.stride()] == list(layer.strides)
            assert tensor.view(torch.uint8).numpy().tobytes() == layer.tobytes()
            del tensor, layer


@every_layout
def test_write_through_one_view_is_read_through_every_other(
    plane: dmaplane.Plane, torch: Any, layout: Layout
) -> None:
    with Pool(plane, layout, BLOCKS) as pool:
        tensor, layer, block = pool.tensor(2), pool.layer(2), pool.block(2, 3)
        tensor[3] = 1.0
        one = {"float32": 0x3F800000, "float16": 0x3C00, "bfloat16": 0x3F80}
        bits = one.get(layout.dtype, 0x38 if layout.dtype == "float8_e4m3fn" else 1)
        integers = f"u{layout.item_bytes}"
        assert (block.view(integers) == bits).all()
        assert (layer[3].view(integers) == bits).all()
        assert (pool.keys(2)[3].view(integers) == bits).all()
        assert not layer[2].any()
        assert not layer[4].any()
        block[...] = 0
        assert not tensor.view(torch.uint8).any()
        pool.layer(2)[0].flat[-1] = 1
        assert tensor.view(torch.uint8)[0].count_nonzero() > 0
        del tensor, layer, block


@every_layout
def test_dlpack_goes_both_ways_without_a_copy(
    plane: dmaplane.Plane, torch: Any, layout: Layout
) -> None:
    if layout.dtype == "bfloat16" and not hasattr(torch, "uint16"):
        pytest.skip("missing-package: torch 2.3, the first with uint16")
    with Pool(plane, layout, BLOCKS) as pool:
        _numbered(pool)
        layer = pool.layer(0)
        theirs = torch.from_dlpack(layer)
        assert tuple(theirs.shape) == layer.shape
        assert theirs.data_ptr() == layer.ctypes.data
        ours = np.from_dlpack(pool.tensor(0).view(theirs.dtype))
        assert ours.ctypes.data == layer.ctypes.data
        assert ours.strides == layer.strides
        assert ours.tobytes() == layer.tobytes()
        theirs.zero_()
        assert not layer.any()
        assert not ours.any()
        turned = torch.from_dlpack(pool.keys(0))  # strided as the order has it
        layer.reshape(-1)[0] = 1
        assert turned[0, 0, 0, 0] == 1
        assert turned.data_ptr() == layer.ctypes.data
        del theirs, ours, turned, layer


def test_numpy_speaks_dlpack_where_torch_is_not(plane: dmaplane.Plane) -> None:
    with Pool(plane, _layout("float16", "HND"), BLOCKS) as pool:
        turned = np.from_dlpack(pool.values(1))
        pool.layer(1)[2, 1, 1, 7, 5] = 3
        assert turned[2, 7, 1, 5] == 3
        assert turned.strides == pool.values(1).strides
        del turned


@pytest.mark.parametrize("kind", ["layer", "block", "keys", "tensor", "dlpack", "slice"])
def test_pool_is_not_closed_under_a_view(plane: dmaplane.Plane, kind: str) -> None:
    if kind == "tensor":
        pytest.importorskip("torch", reason="missing-package: torch")
    pool = Pool(plane, _layout(), BLOCKS)
    lease = pool.lease(2, holder="engine")
    make = {
        "layer": lambda: pool.layer(1),
        "block": lambda: pool.block(1, 2),
        "keys": lambda: pool.keys(1),
        "tensor": lambda: pool.tensor(1),
        "dlpack": lambda: np.from_dlpack(pool.layer(1)),
        "slice": lambda: pool.layer(1)[2:, 1, ::3].T,
    }
    views: list[Any] = [make[kind]()]
    pool.layer(1)[:] = 1
    with pytest.raises(dmaplane.BusyError, match="1 view"):
        pool.close()
    assert not pool.closed
    lease.check()
    assert (views[0] == 1).all(), "a refused close changes nothing"
    views.clear()
    pool.close()
    assert pool.closed
    assert lease.state == "closed"


def test_pool_is_not_closed_under_a_region(plane: dmaplane.Plane) -> None:
    pool = Pool(plane, _layout(), BLOCKS)
    with pool.buffer.region():
        with pytest.raises(dmaplane.BusyError, match="1 region"):
            pool.close()
    pool.close()


def test_view_that_outlives_the_block_is_reported_and_never_dangles(plane: dmaplane.Plane) -> None:
    kept: list[np.ndarray] = []
    with pytest.raises(dmaplane.BusyError, match="numpy float16"):
        with Pool(plane, _layout(), BLOCKS) as pool:
            kept.append(pool.layer(0))
    assert pool.closed
    kept[0][:] = 2
    assert (kept[0] == 2).all()
    assert plane.statistics().buffers == 1
    kept.clear()
    assert plane.statistics().buffers == 0


def test_error_on_its_way_out_is_not_hidden_by_a_view_it_holds(plane: dmaplane.Plane) -> None:
    def fails(pool: Pool) -> None:
        layer = pool.layer(0)  # held by the traceback
        layer[7] = 1

    with pytest.raises(IndexError):
        with Pool(plane, _layout(), BLOCKS) as pool:
            fails(pool)
    assert pool.closed


@pytest.mark.parametrize(("layer", "block"), [(3, 0), (-1, 0), (0, 5), (0, -1)])
def test_views_of_what_is_not_there_are_refused(
    plane: dmaplane.Plane, layer: int, block: int
) -> None:
    with Pool(plane, _layout(), BLOCKS) as pool:
        with pytest.raises(dmaplane.InvalidError, match=r"there is no .*0 \.\."):
            pool.block(layer, block)
