"""Classifiers of noised data: called as net(x, level) -> logits, with the noise level sigma / alpha of each sample."""

from __future__ import annotations

from torch import Tensor, nn

from scorefield.nn.blocks import ResidualBlock, Style
from scorefield.nn.embeddings import Conditioning, FourierFeatures
from scorefield.nn.initial import arguments, fan_avg_uniform_
from scorefield.nn.resample import Dims, conv


class WideResNet(nn.Module):
    """Wide residual network that knows the noise level (Zagoruyko & Komodakis 2016; Song et al. 2021, App. I.1).

    net(x, level): x (B, in_channels, *S) with sides divisible by 4, level (B,), positive; logits (B, num_classes). The
    level enters every block through random Fourier features of its logarithm. Normalisation is by groups, so that a
    sample's class does not depend on its batch-mates.

    Main arguments:
        in_channels, num_classes: of the data.
        depth: 6 n + 4 layers, n blocks at each of three resolutions; 28 in the paper, 10 is small.
        width: multiplier of the 16, 32 and 64 channels; 10 in the paper, 2 is small.

    Other arguments:
        dims: 1 for signals, 2 for images, 3 for volumes. dropout: probability inside the blocks.
        fourier_scale: standard deviation of the frequencies of the Fourier features; 16 in the paper, whose large networks
            can afford to learn neighbouring levels apart.

    Raises:
        ValueError: a depth that is not 6 n + 4.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        depth: int = 28,
        width: int = 10,
        *,
        dims: Dims = 2,
        dropout: float = 0.1,
        fourier_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        self.num_classes = num_classes
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth}: a wide residual network has 6 n + 4 layers, such as 10, 16, 22, 28")
        style = Style(dims=dims, embed=128, dropout=dropout, rescale=False)
        half = style.embed // 2
        act = style.activation()
        self.conditioning = Conditioning(FourierFeatures(half, fourier_scale), style.embed, style.embed, 0, act)
        self.entrance = conv(dims, in_channels, 16)
        self.blocks = nn.ModuleList()
        inputs = 16
        for stage in range(3):
            outputs = 16 * width * 2**stage
            for i in range((depth - 4) // 6):
                self.blocks.append(ResidualBlock(style, inputs, outputs, "down" if stage and not i else None))
                inputs = outputs
        self.norm = style.norm(inputs)
        self.act = act
        self.exit = _zero_linear(inputs, num_classes)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        e = self.conditioning(level)
        h = self.entrance(x)
        for block in self.blocks:
            h = block(h, e)
        logits: Tensor = self.exit(self.act(self.norm(h)).flatten(2).mean(2))
        return logits


class VectorClassifier(nn.Module):
    """Residual perceptron that knows the noise level: net(x, level) -> logits (B, num_classes), x (B, *) of `features` entries.

    Main arguments:
        features: entries of one sample. num_classes: of the data.
        width, depth: of the hidden layers.

    Other arguments:
        fourier_scale: standard deviation of the frequencies of the Fourier features of log(level).
    """

    def __init__(
        self, features: int, num_classes: int, width: int = 128, depth: int = 3, *, fourier_scale: float = 0.3
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        self.num_classes = num_classes
        self.act = nn.SiLU()
        half = max(width // 2, 2)
        self.conditioning = Conditioning(FourierFeatures(half, fourier_scale), 2 * half, width, 0, self.act)
        self.entrance = nn.Linear(features, width)
        self.embeds = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.exit = _zero_linear(width, num_classes)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        e = self.conditioning(level)
        h = self.entrance(x.flatten(1))
        for embed, layer in zip(self.embeds, self.layers, strict=True):
            h = h + layer(self.act(h + embed(e)))
        logits: Tensor = self.exit(self.act(h))
        return logits


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A last layer that starts at zero: all classes alike."""
    layer = nn.Linear(inputs, outputs)
    fan_avg_uniform_(layer.weight, 0.0)
    nn.init.zeros_(layer.bias)
    return layer
