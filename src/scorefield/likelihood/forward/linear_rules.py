"""Tangent rules of linear operations and of products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scorefield.likelihood.forward.dual import (
    Dual,
    Rules,
    UnsupportedOperation,
    lift,
    ndim_of,
    packed_dim,
    packed_dims,
    plain,
    slots_of,
)

aten = torch.ops.aten
LINEAR = Rules()
rule = LINEAR.operator
_QUERY_ROWS = 512
"""Rows of an attention matrix in memory at a time."""


# --- linear operations, applied to value and tangents alike ---


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy")
def _view(func: Any, x: Dual, size: Sequence[int], *rest: Any) -> Dual:
    shape = (len(x.packed), *size)
    return Dual(x.packed.view(shape) if func is aten.view.default else x.packed.reshape(shape))


@rule("expand")
def _expand(func: Any, x: Dual, size: Sequence[int], **_: Any) -> Dual:
    return Dual(lift(x, 0, len(size)).expand(-1, *size))


@rule("permute")
def _permute(func: Any, x: Dual, dims: Sequence[int]) -> Dual:
    return Dual(x.packed.permute(0, *[d % x.ndim + 1 for d in dims]))


@rule("t")
def _t(func: Any, x: Dual) -> Dual:
    return Dual(x.packed.transpose(-1, -2) if x.ndim == 2 else x.packed)


@rule("transpose.int")
def _transpose(func: Any, x: Dual, a: int, b: int) -> Dual:
    return Dual(func(x.packed, packed_dim(a), packed_dim(b)))


@rule("select.int", "slice.Tensor", "unsqueeze", "squeeze.dim", "narrow", "unfold")
def _along(func: Any, x: Dual, dim: int = 0, *rest: Any) -> Dual:
    return Dual(func(x.packed, packed_dim(dim), *rest))


@rule("squeeze.dims", "flip")
def _along_many(func: Any, x: Dual, dims: Sequence[int]) -> Dual:
    return Dual(func(x.packed, packed_dims(dims, x)))


@rule("split.Tensor", "split_with_sizes")
def _split(func: Any, x: Dual, size: Any, dim: int = 0) -> list[Dual]:
    return [Dual(part) for part in func(x.packed, size, packed_dim(dim))]


@rule("unbind.int")
def _unbind(func: Any, x: Dual, dim: int = 0) -> list[Dual]:
    return [Dual(part) for part in func(x.packed, packed_dim(dim))]


@rule("sum.dim_IntList", "mean.dim")
def _reduce(func: Any, x: Dual, dim: Any, keepdim: bool = False, **kwargs: Any) -> Dual:
    return Dual(func(x.packed, packed_dims(dim, x), keepdim, **kwargs))


@rule("sum", "mean")
def _reduce_all(func: Any, x: Dual, **kwargs: Any) -> Dual:
    flat = x.packed.flatten(1)
    return Dual(flat.sum(1, **kwargs) if func is aten.sum.default else flat.mean(1, **kwargs))


@rule("cat", "stack")
def _join(func: Any, parts: Sequence[Tensor], dim: int = 0) -> Dual:
    slots = slots_of(*parts)
    return Dual(func([lift(p, slots, p.ndim) for p in parts], packed_dim(dim)))


@rule("neg", "clone", "detach", "alias", "constant_pad_nd", "lift_fresh", "pixel_shuffle", "pixel_unshuffle")
def _everywhere(func: Any, x: Dual, *rest: Any, **kwargs: Any) -> Dual:
    layout = kwargs.get("memory_format")
    if layout not in (None, torch.preserve_format, torch.contiguous_format):
        kwargs.pop("memory_format")  # channels-last is a layout of four dimensions, and a hint here
    return Dual(func(x.packed, *rest, **kwargs))


@rule("_to_copy")
def _cast(func: Any, x: Dual, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
    smooth = dtype is None or dtype.is_floating_point or dtype.is_complex  # integers are steps, without a derivative
    cast: Tensor = _everywhere(func, x, dtype=dtype, **kwargs) if smooth else func(x.packed[0], dtype=dtype, **kwargs)
    return cast


@rule("convolution")
def _convolution(func: Any, x: Dual, weight: Tensor, bias: Tensor | None, *rest: Any) -> Dual:
    plain(weight, bias)
    p = x.packed
    y = func(p.flatten(0, 1), weight, None, *rest)
    if bias is not None:
        y[: p.shape[1]] += bias.reshape(-1, *[1] * (y.ndim - 2))
    return Dual(y.unflatten(0, p.shape[:2]))


@rule(
    "avg_pool2d",
    "avg_pool3d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "upsample_nearest1d.vec",
    "upsample_nearest2d.vec",
    "upsample_nearest3d.vec",
    "upsample_bilinear2d",
    "upsample_bilinear2d.vec",
    "_adaptive_avg_pool2d",
)
def _folded(func: Any, x: Dual, *rest: Any, **kwargs: Any) -> Dual:
    y = func(x.packed.flatten(0, 1), *rest, **kwargs)
    return Dual(y.unflatten(0, x.packed.shape[:2]))


@rule("index.Tensor")
def _index(func: Any, x: Dual, indices: Sequence[Tensor | None]) -> Dual:
    plain(*indices)
    return Dual(torch.stack([func(v, list(indices)) for v in x.packed]))


@rule("gather", "index_select")
def _gather(func: Any, x: Dual, dim: int, index: Tensor, **_: Any) -> Dual:
    plain(index)
    if func is aten.index_select.default:
        return Dual(func(x.packed, packed_dim(dim), index))
    return Dual(func(x.packed, packed_dim(dim), index.expand(len(x.packed), *index.shape)))


@rule("max_pool2d_with_indices")
def _max_pool(func: Any, x: Dual, *rest: Any) -> tuple[Dual, Tensor]:
    value, where = func(x.packed[0], *rest)
    tangents = x.packed[1:].flatten(-2).gather(-1, where.flatten(-2).expand(len(x.packed) - 1, -1, -1, -1))
    return Dual(torch.cat([value.unsqueeze(0), tangents.unflatten(-1, value.shape[-2:])])), where


@rule("add.Tensor", "sub.Tensor", "rsub.Scalar", "rsub.Tensor", "add.Scalar", "sub.Scalar")
def _add(func: Any, a: Any, b: Any, alpha: float = 1) -> Dual:
    if func in (aten.rsub.Scalar, aten.rsub.Tensor):
        a, b, func = b, a, aten.sub.Tensor
    sign = -alpha if func in (aten.sub.Tensor, aten.sub.Scalar) else alpha
    ndim = max(ndim_of(a), ndim_of(b))
    if isinstance(a, Dual) and isinstance(b, Dual):
        return Dual(torch.add(lift(a, 0, ndim), lift(b, 0, ndim), alpha=sign))
    dual, other = (a, b) if isinstance(a, Dual) else (b, a)
    p = lift(dual, 0, ndim)
    shape = p.shape[1:] if not isinstance(other, Tensor) else torch.broadcast_shapes(p.shape[1:], other.shape)
    kind = torch.result_type(dual.packed[0], other)
    out = p.expand(-1, *shape).to(kind, copy=True, memory_format=torch.contiguous_format)
    if dual is b and sign != 1:
        out *= sign
    out[0].add_(other, alpha=sign if dual is a else 1)
    return Dual(out)


# --- products ---


@rule("mul.Tensor", "mul.Scalar")
def _mul(func: Any, a: Any, b: Any) -> Dual:
    ndim = max(ndim_of(a), ndim_of(b))
    if not (isinstance(a, Dual) and isinstance(b, Dual)):
        dual, other = (a, b) if isinstance(a, Dual) else (b, a)
        return Dual(lift(dual, 0, ndim) * other)
    p, q = lift(a, 0, ndim), lift(b, 0, ndim)
    out = p * q[:1]
    out[1:].addcmul_(p[:1], q[1:])
    return Dual(out)


@rule("div.Tensor", "div.Scalar")
def _div(func: Any, a: Any, b: Any) -> Dual:
    ndim = max(ndim_of(a), ndim_of(b))
    if not isinstance(b, Dual):
        return Dual(lift(a, 0, ndim) / b)
    q = lift(b, 0, ndim)
    inverse = 1 / q[:1]
    if not isinstance(a, Dual):
        value = a * inverse
        return Dual(torch.cat([value, -value * inverse * q[1:]]))
    p = lift(a, 0, ndim)
    out = p * inverse
    out[1:].addcmul_(out[:1] * inverse, q[1:], value=-1)
    return Dual(out)


@rule("mv")
def _matrix_vector(func: Any, a: Any, b: Any) -> Dual:
    column = Dual(b.packed.unsqueeze(-1)) if isinstance(b, Dual) else b.unsqueeze(-1)
    return Dual(_matmul(torch.mm, a, column).packed.squeeze(-1))


@rule("mm", "bmm")
def _matmul(func: Any, a: Tensor, b: Tensor) -> Dual:
    if isinstance(a, Dual) and isinstance(b, Dual):
        value = func(a.packed[0], b.packed[0])
        tangents = a.packed[1:] @ b.packed[0] + a.packed[0] @ b.packed[1:]
        return Dual(torch.cat([value.unsqueeze(0), tangents]))
    return Dual((a.packed if isinstance(a, Dual) else a) @ (b.packed if isinstance(b, Dual) else b))


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Dual:
    plain(weight, bias)
    assert isinstance(x, Dual)
    p = x.packed
    y = (p.flatten(0, -2) @ weight.mT).unflatten(0, p.shape[:-1])
    if bias is not None:
        y[0] += bias
    return Dual(y)


@rule("addmm")
def _addmm(func: Any, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Dual:
    if not isinstance(a, Dual) or isinstance(b, Dual) or isinstance(bias, Dual):
        raise UnsupportedOperation("addmm: only the input of a dense layer may depend on x")
    y = (a.packed.flatten(0, 1) @ b).unflatten(0, a.packed.shape[:2])
    y = y if alpha == 1 else y * alpha
    y[0].add_(bias, alpha=beta)
    return Dual(y)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Dual:
    """softmax(q k^T scale) v and its tangents, a block of queries at a time."""
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        raise UnsupportedOperation("attention with a mask, with dropout or with grouped queries has no tangent rule")
    slots, factor = slots_of(q, k, v), q.shape[-1] ** -0.5 if scale is None else scale
    qp, kp, vp = lift(q, slots, q.ndim) * factor, lift(k, slots, k.ndim), lift(v, slots, v.ndim)
    keys, value = kp.transpose(-1, -2), vp[0]
    blocks = []
    for rows in qp.split(_QUERY_ROWS, dim=-2):
        weights = torch.softmax(rows[0] @ keys[0], -1)
        slopes = rows[1:] @ keys[0] + rows[0] @ keys[1:]
        slopes -= (weights * slopes).sum(-1, keepdim=True)
        slopes *= weights
        blocks.append(torch.cat([(weights @ value).unsqueeze(0), slopes @ value + weights @ vp[1:]]))
    return Dual(torch.cat(blocks, dim=-2))


LINEAR.functions.update({F.scaled_dot_product_attention: _attention, F.linear: _dense})
