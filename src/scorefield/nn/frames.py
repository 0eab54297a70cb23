"""A perceptron for each frame of a spectrogram, which sees the frames around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scorefield.nn.embeddings import positional_features
from scorefield.nn.initial import arguments

FLOOR = 1e-2
"""Magnitude below which a bin counts as silent."""
QUIET = 0.15
"""Quantile over time that stands for the noise of a bin, where speech pauses."""
TIMES = 32


class FrameMLP(nn.Module):
    """Clean spectrogram from a state and a noisy one, each frame by itself: net(cat, t) -> (B, 2, bins, frames).

    cat (B, 4, bins, frames) holds real and imaginary part of the state x and of the noisy y, as `Paired` shows them. Each frame
    sees both, the log-magnitudes of y around it, and how loud y is in its quiet moments; it returns a mask on y and what is
    left: mask y + rest / 5. For `predict="data"`; any number of frames will do.

    Main arguments:
        bins: frequencies. width, depth: hidden layers, the first included. context: frames seen on either side.
    """

    exact_time = True

    def __init__(self, bins: int, width: int = 224, depth: int = 3, context: int = 2) -> None:
        super().__init__()
        self.config = arguments(locals())
        self.bins, self.context = bins, context
        self.entrance = nn.Linear((2 * context + 1 + 1 + 4) * bins + TIMES, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.exit = nn.Linear(width, 3 * bins)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, shown: Tensor, t: Tensor) -> Tensor:
        if shown.ndim != 4 or shown.shape[1:3] != (4, self.bins):
            raise ValueError(f"x: expected (B, 4, {self.bins}, frames), got shape {tuple(shown.shape)}")
        y = shown[:, 2:]
        h = nn.functional.silu(self.entrance(self._features(shown, y, t)))
        for layer in self.layers:
            h = h + nn.functional.silu(layer(h))
        mask, *rest = self.exit(h).transpose(1, 2).chunk(3, 1)
        return torch.sigmoid(mask).unsqueeze(1) * y + 0.2 * torch.stack(rest, 1)

    def _features(self, shown: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """What each frame sees, (B, frames, features)."""
        loud = 0.3 * torch.log(torch.square(y).sum(1) + FLOOR**2) + 1  # of order 1
        ends = nn.functional.pad(loud, (self.context, self.context), mode="replicate")
        around = ends.unfold(2, 2 * self.context + 1, 1).permute(0, 2, 1, 3).flatten(2)
        place = max(1, round(QUIET * loud.shape[2]))
        quiet = loud.sort(2).values[..., place - 1].unsqueeze(1).expand(-1, loud.shape[2], -1)
        time = positional_features(30 * t, TIMES).to(shown.dtype).unsqueeze(1).expand(-1, loud.shape[2], -1)
        return torch.cat([around, quiet, shown.permute(0, 3, 1, 2).flatten(2), time], 2)
