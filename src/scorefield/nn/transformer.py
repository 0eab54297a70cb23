"""Transformers for sequences of states: one that sees all positions, and one in which no output sees its own."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from scorefield.nn.embeddings import Conditioning, PositionalFeatures
from scorefield.nn.initial import arguments


class Transformer(nn.Module):
    """Logits of the states of every position: net(x, t=None, label=None), states (B, *) -> (B, *, outputs).

    Pre-normalised blocks with rotary positions (Su et al. 2021) and normalised queries and keys, so that it takes sequences
    of any length; an event of several dimensions is read as one sequence. Time and label enter as scale, shift and gate of
    every block (Peebles & Xie 2023), where there are any.

    Main arguments:
        states: states of the input, a mask included.
        outputs: states of the output, those of the input unless given.
        width, depth, heads: of the blocks.
        length: positions of data that has places of its own, such as images and tables, which get a vector each; None for
            text, which may begin anywhere and be of any length.
        time: whether it looks at the time; masked diffusion needs none, and then `JumpModel(clock=None)` gives none.

    Other arguments:
        num_classes: integer labels (B,) may be passed as `label`; None or a negative entry is the null label.
        dropout: probability after attention and layers.

    Raises:
        ValueError: heads that do not share the width evenly, or heads of odd width.
    """

    def __init__(
        self,
        states: int,
        outputs: int | None = None,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        *,
        length: int | None = None,
        time: bool = False,
        num_classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        _check_heads(width, heads)
        self.num_classes, self.time = num_classes, time
        self.conditioning = _conditioning(width, time, num_classes)
        embed = width if self.conditioning is not None else 0
        self.entrance = nn.Embedding(states, width)
        self.places = _places(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, embed) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.exit = nn.Linear(width, states if outputs is None else outputs)
        nn.init.normal_(self.entrance.weight, std=0.5)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, x: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        h = _placed(self.entrance(x.flatten(1)), self.places)
        e = _embedded(self.conditioning, t, label, h)
        angles = rotary(h.shape[1], self.config["width"] // self.config["heads"], h)
        for block in self.blocks:
            h = block(h, angles, e)
        out: Tensor = self.exit(self.norm(h))
        return out.reshape(*x.shape, -1)


class HollowTransformer(nn.Module):
    """As `Transformer`, but no output sees the state at its own position, as ratio matching needs (Sun et al. 2023, sec. 4.3).

    Two causal streams, one of the states before a position and one of those after it, are joined at the read-out.

    Arguments: as `Transformer`.
    """

    def __init__(
        self,
        states: int,
        outputs: int | None = None,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        *,
        length: int | None = None,
        time: bool = True,
        num_classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        _check_heads(width, heads)
        self.num_classes, self.time = num_classes, time
        self.conditioning = _conditioning(width, time, num_classes)
        embed = width if self.conditioning is not None else 0
        self.entrance = nn.Embedding(states + 1, width)  # the last one stands before the first and after the last state
        self.places = _places(length, width)
        self.before = nn.ModuleList(Block(width, heads, dropout, embed) for _ in range(depth))
        self.after = nn.ModuleList(Block(width, heads, dropout, embed) for _ in range(depth))
        self.join = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.exit = nn.Linear(width, states if outputs is None else outputs)
        nn.init.normal_(self.entrance.weight, std=0.5)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, x: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        edge = torch.full_like(flat[:, :1], self.entrance.num_embeddings - 1)
        places = self.places
        streams = []
        for blocks, seen, at in (
            (self.before, torch.cat([edge, flat[:, :-1]], 1), places),
            (self.after, torch.cat([edge, flat.flip(1)[:, :-1]], 1), None if places is None else places.flip(0)),
        ):
            h = _placed(self.entrance(seen), at)
            e = _embedded(self.conditioning, t, label, h)
            angles = rotary(h.shape[1], self.config["width"] // self.config["heads"], h)
            for block in blocks:
                h = block(h, angles, e, causal=True)
            streams.append(h)
        out: Tensor = self.exit(self.join(torch.cat([streams[0], streams[1].flip(1)], -1)))
        return out.reshape(*x.shape, -1)


class Block(nn.Module):
    """Attention and two layers, each a normalised residual, modulated where there is something to be conditioned on."""

    def __init__(self, width: int, heads: int, dropout: float, embed: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=not embed) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.modulate = nn.Linear(embed, 6 * width) if embed else None
        for layer in (self.qkv, self.fc1):
            nn.init.normal_(layer.weight, std=width**-0.5)
        for layer in (self.proj, self.fc2):
            nn.init.normal_(layer.weight, std=0.2 * layer.in_features**-0.5)
        if self.modulate is not None:
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)

    def forward(self, h: Tensor, angles: tuple[Tensor, Tensor], e: Tensor | None, causal: bool = False) -> Tensor:
        shift1 = scale1 = gate1 = shift2 = scale2 = gate2 = h.new_zeros(())
        if self.modulate is not None and e is not None:
            shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(e).unsqueeze(1).chunk(6, -1)
        b, n, width = h.shape
        q, k, v = (
            self.qkv((1 + scale1) * self.norm1(h) + shift1).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        q, k = (_rotate(nn.functional.rms_norm(part, part.shape[-1:]), angles) for part in (q, k))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        h = h + (1 + gate1) * self.dropout(self.proj(attended.transpose(1, 2).reshape(b, n, width)))
        inner = nn.functional.gelu(self.fc1((1 + scale2) * self.norm2(h) + shift2))
        return cast(Tensor, h + (1 + gate2) * self.dropout(self.fc2(inner)))


def rotary(length: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles of each position, (length, width / 2), in the dtype and on the device of `like`."""
    frequency = torch.exp(-math.log(10_000.0) / max(width // 2, 1) * torch.arange(width // 2))
    angle = torch.arange(length).unsqueeze(1) * frequency
    return torch.cos(angle).to(like), torch.sin(angle).to(like)


def _rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = angles
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _places(length: int | None, width: int) -> nn.Parameter | None:
    return None if length is None else nn.Parameter(0.1 * torch.randn(length, width))


def _placed(h: Tensor, places: Tensor | None) -> Tensor:
    """h (B, L, width) with the vectors of its places."""
    if places is None:
        return h
    if len(places) != h.shape[1]:
        raise ValueError(f"x has {h.shape[1]} positions; this network has length={len(places)}")
    return h + places


def _conditioning(width: int, time: bool, num_classes: int) -> Conditioning | None:
    if not time and not num_classes:
        return None
    return Conditioning(PositionalFeatures(width, 100.0) if time else None, width, width, num_classes)


def _embedded(conditioning: Conditioning | None, t: Tensor | None, label: Tensor | None, h: Tensor) -> Tensor | None:
    if conditioning is None:
        if label is not None:
            raise ValueError("label: this network was built without classes; pass num_classes when building it")
        return None
    if t is None:
        if conditioning.features is not None:
            raise ValueError("t is missing: this network looks at the time; leave JumpModel's clock at 't'")
        t = h.new_zeros(len(h))
    return cast(Tensor, conditioning(t, label))


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads or (width // heads) % 2:
        raise ValueError(f"width={width}, heads={heads}: give heads of even width, such as width=128, heads=4")
