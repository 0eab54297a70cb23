"""Training with little memory: a convolution that keeps the input of its norm, and recomputes what lies between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

Prepare = Callable[[Tensor, Tensor, Tensor], Tensor]


def is_worthwhile(module: nn.Module, x: Tensor) -> bool:
    """Whether the module is being trained in the plain way, where memory matters.

    Compilers recompute by themselves, and function transforms need operations that they know.
    """
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return module.training and type(x) is Tensor and not transformed and not torch.compiler.is_compiling()


def prepared_convolution(x: Tensor, norm: nn.GroupNorm, conv: Any, prepare: Prepare, dropout: float = 0.0) -> Tensor:
    """conv(dropout(prepare(x, norm.weight, norm.bias))), of which the backward pass finds x and the dropout mask alone.

    A residual block so holds two tensors of its width instead of seven, for one more normalisation and activation. The
    result is differentiable any number of times.

    Main arguments:
        prepare: from x and the weight and bias of the norm to the input of the convolution; uses no other parameters.
        conv: an `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`.
        dropout: probability of a zero.
    """
    y: Tensor = _PreparedConvolution.apply(x, norm.weight, norm.bias, conv.weight, conv.bias, (conv, prepare, dropout))  # type: ignore[no-untyped-call]
    return y


def dropout_mask(like: Tensor, p: float) -> Tensor:
    """Zeros with probability p and ones, uint8, laid out in memory like `like`.

    On a CPU, sixteen random bits an entry: p is met to 8e-6, at a quarter of the price of `bernoulli_`.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=torch.uint8).bernoulli_(1 - p)
    n = like.numel()
    bits = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:n]
    kept = (bits >= round(p * 2**16) - 2**15).view(torch.uint8)
    return kept.as_strided(like.shape, torch.empty_like(like, device="meta").stride())


class _PreparedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor,
        bias: Tensor,
        how: tuple[Any, Prepare, float],
    ) -> Tensor:
        conv, prepare, dropout = how
        a = prepare(x, gamma, beta)
        mask = dropout_mask(a, dropout) if dropout else None
        ctx.save_for_backward(x, gamma, beta, weight, mask)
        ctx.conv, ctx.prepare, ctx.dropout = conv, prepare, dropout
        y: Tensor = conv(_drop(a, mask, dropout))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, weight, mask = ctx.saved_tensors
        again = torch.is_grad_enabled()  # the gradient is itself to be differentiated
        conv, needs = ctx.conv, ctx.needs_input_grad
        with torch.enable_grad():
            inputs = [v if again else v.detach().requires_grad_() for v in (x, gamma, beta)]
            a = _drop(ctx.prepare(*inputs), mask, ctx.dropout)
        to_a, to_weight, to_bias = torch.ops.aten.convolution_backward(
            grad,
            (a if again else a.detach()).to(grad.dtype),  # under autocast it ran in the dtype of its result
            weight.to(grad.dtype),
            [conv.out_channels],
            conv.stride,
            conv.padding,
            conv.dilation,
            False,
            [0] * len(conv.stride),
            conv.groups,
            [True, needs[3], needs[4]],
        )
        needed = [i for i in range(3) if needs[i]]
        found = torch.autograd.grad(a, [inputs[i] for i in needed], to_a.to(a.dtype), create_graph=again)
        grads = dict(zip(needed, found, strict=True))
        to_weight = None if to_weight is None else to_weight.to(weight.dtype)
        to_bias = None if to_bias is None else to_bias.to(conv.bias.dtype)
        return (*(grads.get(i) for i in range(3)), to_weight, to_bias, None)


def _drop(a: Tensor, mask: Tensor | None, p: float) -> Tensor:
    return a if mask is None else a.mul_(mask.to(a.dtype).mul_(1 / (1 - p) if p < 1 else 1.0))
