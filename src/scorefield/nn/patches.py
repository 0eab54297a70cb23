"""The diffusion transformer (Peebles & Xie 2023), its weights under the names of the authors' state dicts."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.inputs import positive
from scorefield.nn.embeddings import cosine_features
from scorefield.nn.initial import arguments

SIZES: dict[str, tuple[int, int, int]] = {
    "XS": (6, 192, 3),
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
"""Depth, width, heads: the paper's Table 1, and one below it for a laptop."""


class DiT(nn.Module):
    """Patches through transformer blocks whose norms the time and the class scale, shift and gate (adaLN-Zero).

    Called as net(x, t, label=None) -> like x; x (B, in_channels, H, W) with sides divisible by `patch`, any number of them; t
    (B,), which the embedding reads as `time_scale` * t, a label around [0, 1000].

    Main arguments:
        in_channels: channels of x. patch: pixels a side of one token.
        depth, width, heads: of the transformer; `dit` names sizes.
        num_classes: integer labels of shape (B,) may be passed as `label`; None or a negative entry is the null label.

    Other arguments:
        mlp_ratio: width inside the blocks, in units of `width`. learn_sigma: a variance comes out too, and is left aside.

    Raises:
        ValueError: heads that do not divide the width, a width that is not a multiple of 4, or an input that does not fit.
    """

    exact_time = True

    def __init__(
        self,
        in_channels: int = 3,
        patch: int = 2,
        depth: int = 12,
        width: int = 384,
        heads: int = 6,
        *,
        num_classes: int = 0,
        mlp_ratio: float = 4.0,
        learn_sigma: bool = False,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        if min(patch, depth, heads) < 1 or width % heads or width % 4:
            raise ValueError(
                f"patch={patch}, depth={depth}, width={width}, heads={heads}: expected numbers from 1 on, and a width that "
                "is a multiple of 4 and of heads"
            )
        positive(time_scale=time_scale)
        self.in_channels, self.patch, self.width, self.time_scale = in_channels, patch, width, time_scale
        self.num_classes = num_classes
        outputs = in_channels * (2 if learn_sigma else 1)
        self.x_embedder = _Part(proj=nn.Conv2d(in_channels, width, patch, stride=patch))
        self.t_embedder = _Part(mlp=nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)))
        if num_classes:
            self.y_embedder = _Part(embedding_table=nn.Embedding(num_classes + 1, width))  # the last is the null label
        self.blocks = nn.ModuleList(_Block(width, heads, int(width * mlp_ratio)) for _ in range(depth))
        self.final_layer = _Part(linear=nn.Linear(width, patch**2 * outputs), adaLN_modulation=_modulation(width, 2))
        self._initialise()

    def _initialise(self) -> None:
        """As the paper: Xavier, small embeddings, and zeros where a block or the exit begins."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        if self.num_classes:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        blocks: Any = self.blocks
        for zero in (*(block.adaLN_modulation[1] for block in blocks), self.final_layer.adaLN_modulation[1]):
            nn.init.zeros_(zero.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        p = self.patch
        if x.ndim != 4 or x.shape[1] != self.in_channels or any(side % p for side in x.shape[2:]):
            raise ValueError(
                f"x: expected shape (B, {self.in_channels}, H, W) sides divisible by {p}, got {tuple(x.shape)}"
            )
        rows, columns = x.shape[2] // p, x.shape[3] // p
        h = self.x_embedder.proj(x).flatten(2).transpose(1, 2)
        h = h + positions(rows, columns, self.width).to(dtype=h.dtype, device=h.device)
        c = self._condition(t, label)
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.final_layer.adaLN_modulation(c).chunk(2, dim=1)
        y = self.final_layer.linear(_modulate(h, shift, scale))
        y = y.reshape(-1, rows, columns, p, p, y.shape[-1] // p**2).permute(0, 5, 1, 3, 2, 4)
        return y.reshape(len(y), -1, *x.shape[2:])[:, : self.in_channels]  # type: ignore[no-any-return]

    def _condition(self, t: Tensor, label: Tensor | None) -> Tensor:
        features = cosine_features(self.time_scale * t, 256)
        c: Tensor = self.t_embedder.mlp(features.to(self.final_layer.linear.weight.dtype))
        if not self.num_classes:
            if label is not None:
                raise ValueError("label: this network was built without classes; pass num_classes when building it")
            return c
        if label is None:
            label = torch.full(t.shape, -1, device=t.device)
        beyond = label.device.type == "cpu" and bool(
            (label >= self.num_classes).any()
        )  # elsewhere looking costs a wait
        if label.is_floating_point() or label.shape not in ((), t.shape) or beyond:
            expected = f"integers below {self.num_classes} of shape {tuple(t.shape)}"
            raise ValueError(f"label: expected {expected}, got {tuple(label.shape)} {label.dtype}")
        known = torch.where(label < 0, self.num_classes, label).expand(t.shape)
        return c + self.y_embedder.embedding_table(known)  # type: ignore[no-any-return]


def dit(size: Literal["XS", "S", "B", "L", "XL"] = "S", in_channels: int = 3, patch: int = 2, **options: Any) -> DiT:
    """A `DiT` of a named size; options as in `DiT`.

    Raises:
        ValueError: the size is unknown.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r} is unknown; choose one of {', '.join(SIZES)}")
    return DiT(in_channels, patch, *SIZES[size], **options)


class _Part(nn.Module):
    """Modules under a common name."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, w = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if torch.is_grad_enabled() and n <= 1024:
            # The fused kernels have no second derivative, and save nothing where the matrix is this small.
            h = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v
        else:
            h = F.scaled_dot_product_attention(q, k, v)
        return self.proj(h.transpose(1, 2).reshape(b, n, w))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Attention and perceptron, each normalised, scaled and shifted before and gated after by the condition."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        self.mlp = _Part(fc1=nn.Linear(width, hidden), fc2=nn.Linear(hidden, width))
        self.adaLN_modulation = _modulation(width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(_modulate(x, shift1, scale1))
        h = self.mlp.fc2(F.gelu(self.mlp.fc1(_modulate(x, shift2, scale2)), approximate="tanh"))
        return x + gate2.unsqueeze(1) * h  # type: ignore[no-any-return]


def _modulation(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Sinusoids of the column in the first half of the width and of the row in the second: (rows * columns, width), float32."""
    rate = 10_000 ** -(torch.arange(width // 4, dtype=torch.float32, device="cpu") / (width // 4))
    parts = []
    for axis in torch.meshgrid(torch.arange(columns, device="cpu"), torch.arange(rows, device="cpu"), indexing="xy"):
        phase = torch.outer(axis.flatten().float(), rate)
        parts += [phase.sin(), phase.cos()]
    return torch.cat(parts, dim=1)
