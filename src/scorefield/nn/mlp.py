"""A residual perceptron for vectors."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from scorefield.nn.embeddings import Conditioning, FourierFeatures, PositionalFeatures
from scorefield.nn.initial import arguments, fan_avg_uniform_


class MLP(nn.Module):
    """Residual layers of width `width` with the conditioning added in each: net(x, t, label=None) -> like x.

    x has shape (B, features), or (B, *) with that many entries in all; t has shape (B,).

    Main arguments:
        features: entries of one sample.
        width: hidden width.
        depth: number of residual layers.
        embedding: "positional" reads `time_scale` * t, "fourier" reads t as a noise level (ScoreModel's clock="sigma").
        num_classes: as in `UNet`.

    Other arguments:
        time_scale: the fastest frequency, in radians per unit of t, that the embedding resolves.
        dropout: probability after each activation.
    """

    exact_time = True

    def __init__(
        self,
        features: int,
        width: int = 128,
        depth: int = 3,
        *,
        embedding: Literal["positional", "fourier"] = "positional",
        time_scale: float = 1000.0,
        fourier_scale: float = 1.0,
        num_classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        if embedding not in ("positional", "fourier"):
            raise ValueError(f"embedding={embedding!r} is unknown; choose one of positional, fourier")
        self.features, self.num_classes = features, num_classes
        self.act = nn.SiLU()
        half = max(width // 2, 2)
        read: nn.Module = FourierFeatures(half, fourier_scale)
        if embedding == "positional":
            read = PositionalFeatures(2 * half, time_scale)
        self.conditioning = Conditioning(read, 2 * half, width, num_classes, self.act)
        self.entrance = nn.Linear(features, width)
        self.embeds = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.exit = nn.Linear(width, features)
        for layer in (self.entrance, *self.embeds, *self.layers, self.exit):
            assert isinstance(layer, nn.Linear)
            fan_avg_uniform_(layer.weight, 0.0 if layer is self.exit else 1.0)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        if flat.shape[1] != self.features:
            raise ValueError(f"x: expected {self.features} entries a sample, got shape {tuple(x.shape)}")
        e = self.conditioning(t, label)
        h = self.entrance(flat)
        for embed, layer in zip(self.embeds, self.layers, strict=True):
            h = h + layer(self.dropout(self.act(h + embed(e))))
        return self.exit(self.act(h)).reshape(x.shape)  # type: ignore[no-any-return]
