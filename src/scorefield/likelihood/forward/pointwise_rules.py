"""Tangent rules of entrywise functions, softmax and normalisations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scorefield.likelihood.forward.dual import (
    Dual,
    Rule,
    Rules,
    UnsupportedOperation,
    lift,
    packed_dim,
    packed_dims,
    plain,
    rule_of,
    slots_of,
)

aten = torch.ops.aten
POINTWISE = Rules()
rule = POINTWISE.operator


# --- functions of one entry: the diagonal Jacobian is that of torch's own backward kernels ---


@rule("silu")
def _silu(func: Any, x: Dual) -> Dual:
    p = x.packed.contiguous()
    out = torch.empty_like(p)
    aten.silu.out(p[0], out=out[0])
    for tangent, slope in zip(p[1:], out[1:], strict=True):
        aten.silu_backward.grad_input(tangent, p[0], grad_input=slope)
    return Dual(out)


def _unary(slope: Callable[[Any, Tensor, Tensor, tuple[Any, ...]], Tensor]) -> Rule:
    """The rule of an elementwise function from `slope(tangents, x, y, further arguments)`."""

    def rule(func: Any, x: Dual, *rest: Any, **kwargs: Any) -> Dual:
        value = func(x.packed[0], *rest, **kwargs)
        arguments = (*rest, *kwargs.values())
        return Dual(torch.cat([value.unsqueeze(0), slope(x.packed[1:], x.packed[0], value, arguments)]))

    return rule


rule("relu")(_unary(lambda d, x, y, a: d * (x > 0)))
rule("leaky_relu")(_unary(lambda d, x, y, a: torch.where(x > 0, d, d * (a[0] if a else 0.01))))
rule("elu")(_unary(lambda d, x, y, a: d * _elu_slope(x, *a)))
rule("gelu")(_unary(lambda d, x, y, a: aten.gelu_backward(d, x.expand_as(d), approximate=a[0] if a else "none")))
rule("softplus")(_unary(lambda d, x, y, a: d * torch.sigmoid(x * (a[0] if a else 1))))
rule("tanh")(_unary(lambda d, x, y, a: d * (1 - y * y)))
rule("sigmoid")(_unary(lambda d, x, y, a: d * (y * (1 - y))))
rule("exp")(_unary(lambda d, x, y, a: d * y))
rule("log")(_unary(lambda d, x, y, a: d / x))
rule("sin")(_unary(lambda d, x, y, a: d * torch.cos(x)))
rule("cos")(_unary(lambda d, x, y, a: -d * torch.sin(x)))
rule("sqrt")(_unary(lambda d, x, y, a: d / (2 * y)))
rule("rsqrt")(_unary(lambda d, x, y, a: d * (-0.5 * y / x)))
rule("reciprocal")(_unary(lambda d, x, y, a: -d * (y * y)))
rule("erf")(_unary(lambda d, x, y, a: d * (1.1283791670955126 * torch.exp(-x * x))))
rule("erfc")(_unary(lambda d, x, y, a: d * (-1.1283791670955126 * torch.exp(-x * x))))
rule("abs")(_unary(lambda d, x, y, a: d * torch.sign(x)))
rule("pow.Tensor_Scalar")(_unary(lambda d, x, y, a: d * (a[0] * torch.pow(x, a[0] - 1) if a[0] else 0.0)))
rule("clamp", "clamp_min")(_unary(lambda d, x, y, a: d * (x == y)))


def _elu_slope(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return scale * torch.where(x > 0, torch.ones_like(x), alpha * input_scale * torch.exp(input_scale * x))


@rule("gt.Scalar", "ge.Scalar", "lt.Scalar", "le.Scalar", "eq.Scalar", "ne.Scalar", "isfinite", "isnan")
@rule("sign", "floor", "ceil", "round", "trunc")
def _decision(func: Any, x: Dual, *rest: Any) -> Tensor:
    plain(*rest)
    return func(x.packed[0], *rest)  # type: ignore[no-any-return]


@rule("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_empty")
def _constant(func: Any, x: Dual, *rest: Any, **kwargs: Any) -> Tensor:
    return func(x.packed[0], *rest, **kwargs)  # type: ignore[no-any-return]


@rule("where.self")
def _where(func: Any, condition: Tensor, a: Tensor, b: Tensor) -> Dual:
    slots, ndim = slots_of(a, b), max(condition.ndim, a.ndim, b.ndim)
    return Dual(func(condition, lift(a, slots, ndim), lift(b, slots, ndim)))


@rule("addcmul")
def _addcmul(func: Any, x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + (a * b if value == 1 else value * a * b)


def _in_place(func: Any, x: Tensor, *rest: Any, **kwargs: Any) -> Dual:
    if not isinstance(x, Dual):
        raise UnsupportedOperation(f"{func} would write tangents into a plain tensor")
    x.packed.copy_(rule_of(_IN_PLACE[func])(_IN_PLACE[func], x, *rest, **kwargs).packed)
    return x


_IN_PLACE = {
    aten.add_.Tensor: aten.add.Tensor,
    aten.sub_.Tensor: aten.sub.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.div_.Tensor: aten.div.Tensor,
    aten.addcmul_.default: aten.addcmul.default,
    aten.silu_.default: aten.silu.default,
    aten.relu_.default: aten.relu.default,
    aten.elu_.default: aten.elu.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
}
rule(*_IN_PLACE)(_in_place)


# --- softmax and normalisations ---


@rule("_softmax")
def _softmax(func: Any, x: Dual, dim: int, half_to_float: bool) -> Dual:
    y = func(x.packed[0], dim, half_to_float)
    weighted = y * x.packed[1:]
    tangents = weighted - y * weighted.sum(packed_dim(dim) if dim >= 0 else dim, keepdim=True)
    return Dual(torch.cat([y.unsqueeze(0), tangents]))


@rule("logsumexp")
def _logsumexp(func: Any, x: Dual, dim: Sequence[int], keepdim: bool = False) -> Dual:
    value = func(x.packed[0], dim, keepdim)
    weights = torch.exp(x.packed[0] - func(x.packed[0], dim, True))
    return Dual(torch.cat([value.unsqueeze(0), (weights * x.packed[1:]).sum(packed_dims(dim, x), keepdim)]))


@rule("var.correction")
def _var(func: Any, x: Dual, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Dual:
    value = func(x.packed[0], dim, correction=correction, keepdim=keepdim)
    axes = [d - 1 if d > 0 else d for d in packed_dims(dim, x)]
    centred = x.packed[0] - x.packed[0].mean(axes, keepdim=True)
    count = x.packed[0].numel() // value.numel() - (1 if correction is None else correction)
    tangents = (2 / count) * (centred * x.packed[1:]).sum(packed_dims(dim, x), keepdim)
    return Dual(torch.cat([value.unsqueeze(0), tangents]))


# The Jacobian of (x - mean) / std is symmetric, so torch's backward kernels push tangents forward as well.


@rule("native_group_norm")
def _group_norm(
    func: Any, x: Dual, weight: Tensor | None, bias: Tensor | None, *sizes: Any
) -> tuple[Dual, Tensor, Tensor]:
    plain(weight, bias)
    *shape, eps = sizes  # items, channels, places, groups; and what keeps the deviation from 0
    p = x.packed.contiguous()
    out = torch.empty_like(p)
    out[0], mean, rstd = func(p[0], weight, bias, *shape, eps)
    for tangent, slope in zip(p[1:], out[1:], strict=True):
        slope.copy_(aten.native_group_norm_backward(tangent, p[0], mean, rstd, None, *shape, (True, False, False))[0])
    if weight is not None:
        out[1:] *= weight.reshape(-1, *[1] * (p.ndim - 3))
    return Dual(out), mean, rstd


@rule("native_layer_norm")
def _layer_norm(
    func: Any, x: Dual, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Dual, Tensor, Tensor]:
    plain(weight, bias)
    p = x.packed.contiguous()
    value, mean, rstd = func(p[0], shape, weight, bias, eps)
    mask = (True, False, False)
    slopes = [aten.native_layer_norm_backward(d, p[0], shape, mean, rstd, None, None, mask)[0] for d in p[1:]]
    tangents = torch.stack(slopes) if weight is None else torch.stack(slopes) * weight
    return Dual(torch.cat([value.unsqueeze(0), tangents])), mean, rstd


@rule("native_batch_norm", "_native_batch_norm_legit.no_stats", "_native_batch_norm_legit_no_training")
def _batch_norm(func: Any, x: Dual, *rest: Any) -> tuple[Dual, Tensor, Tensor]:
    """With given statistics it is linear; with those of the input (an instance norm) every channel is one row."""
    plain(*rest)
    p = x.packed
    if func is aten._native_batch_norm_legit_no_training.default:
        training, eps = False, rest[-1]
    else:
        training, eps = rest[-3], rest[-1]
    weight, bias = rest[0], rest[1]
    by_channel = (1, -1, *[1] * (p.ndim - 3))
    if not training:
        mean, var = rest[2], rest[3]
        rstd = torch.rsqrt(var + eps)
        out = p * rstd.reshape(by_channel)
        out[0] -= (mean * rstd).reshape(by_channel)
        kept = (mean.new_empty(0), mean.new_empty(0))
    else:
        if p.shape[1] != 1:
            raise UnsupportedOperation("batch normalisation over the batch mixes samples")
        rows = p.flatten(3).squeeze(1) if p.ndim > 3 else p.squeeze(1).unsqueeze(2)
        var, mean = torch.var_mean(rows[0], 1, correction=0, keepdim=True)
        rstd = torch.rsqrt(var + eps)
        normed, slopes = (rows[0] - mean) * rstd, rows[1:] * rstd
        slopes = slopes - slopes.mean(2, keepdim=True) - normed * (normed * slopes).mean(2, keepdim=True)
        out = torch.cat([normed.unsqueeze(0), slopes]).reshape(p.shape)
        kept = (mean.squeeze(1), rstd.squeeze(1))
    if weight is not None:
        out = out * weight.reshape(by_channel)
    if bias is not None:
        out[0] += bias.reshape(by_channel)
    return Dual(out), *kept
