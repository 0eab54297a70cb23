"""Discrete diffusion, each run about a minute of processor time: python benchmarks/discrete.py joint text binary levels.

joint   three positions of four states, against exact laws
text    characters of the standard library's documentation, against counts of one, two and three characters
trigram the same for ten minutes, with a deeper network; only when asked for
binary  binarised handwritten digits
levels  digits of 7 x 7 in four levels: masked, uniform, ordinal, and an autoregressive network of the same size
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import scorefield as sf
from scorefield.data.states import binarised, folded, text
from scorefield.discrete.solve import Tweedie
from scorefield.nn.transformer import Block, rotary

OPTIONS = {
    "name": "muon",
    "lr": 2e-3,
    "beta2": 0.99,
    "warmup": 20,
    "schedule": "linear",
    "ema": 0.98,
    "trackers": (),
    "report": False,
}


def trained(model: sf.ScoreModel, data: object, steps: int, batch_size: int, **options: object) -> sf.ScoreModel:
    """The averaged model after so many steps; prints how long they took."""
    begin, worked = time.monotonic(), time.process_time()
    chosen = OPTIONS | {"times": sf.discrete.JumpTimes()} | options
    with tempfile.TemporaryDirectory() as out:
        run = sf.train(model, data, out=out, steps=steps, batch_size=batch_size, progress=False, **chosen)  # type: ignore[arg-type]
    size = sum(p.numel() for p in model.parameters())
    seconds = f"{time.process_time() - worked:.0f} s of processor, {time.monotonic() - begin:.0f} s by the clock"
    print(f"  {size:,} weights, {run.step} steps of {batch_size}: {seconds}", flush=True)
    return run.model


def told(name: str, values: Tensor, unit: str) -> None:
    """Mean and standard error of figures of single samples."""
    print(f"  {name}: {float(values.mean()):.3f} ± {float(values.std()) / len(values) ** 0.5:.3f} {unit}")


def joint() -> None:
    """A masked perceptron on 64 states whose probabilities are known."""
    logits = np.random.default_rng(7).normal(size=(4, 4, 4)) * 1.5
    p = torch.softmax(torch.from_numpy(logits).flatten(), 0).reshape(4, 4, 4)
    process = sf.discrete.Absorbing(4)
    data = sf.discrete.Table(p, process).sample(200_000, seed=1)
    net = sf.nn.StateMLP(5, 3, 4, width=128, depth=2)
    model = sf.discrete.JumpModel(net, process, (3,), clock=None)
    options = {"steps": 2500, "schedule": "cosine", "name": "adam", "lr": 3e-3, "stratify": True}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        run = sf.train(
            model, data, out=out, batch_size=512, progress=False, **(OPTIONS | options), times=sf.discrete.JumpTimes()
        )  # type: ignore[arg-type]
    entropy = float(torch.special.entr(p).sum())
    exact = exact_bound(run.model, p)
    print(
        f"joint: entropy {entropy:.5f}; bound {exact:.5f} nats, gap {exact - entropy:.4f} ({time.monotonic() - begin:.0f} s)"
    )
    for name, solver, steps in (
        ("first hitting", sf.discrete.FirstHitting(), 1),
        ("ancestral, 4 steps", sf.discrete.Ancestral(), 4),
        ("ancestral, 16 steps", sf.discrete.Ancestral(), 16),
    ):
        x = sf.sample(run.model, 100_000, solver, steps=steps, seed=0, progress=False)
        found = torch.zeros(4, 4, 4, dtype=torch.float64)
        found.index_put_(tuple(x.T), torch.full((len(x),), 1 / len(x), dtype=torch.float64), accumulate=True)
        print(f"  {name}: total variation {float(0.5 * (found - p).abs().sum()):.4f}")


def exact_bound(model: sf.ScoreModel, p: Tensor) -> float:
    """The masked bound without a draw: every pattern of k masked positions has weight (k - 1)! (D - k)! / D!."""
    total, x0 = 0.0, torch.cartesian_prod(*[torch.arange(4)] * 3)
    for pattern in torch.cartesian_prod(*[torch.arange(2)] * 3)[1:].bool():
        k = int(pattern.sum())
        weight = math.factorial(k - 1) * math.factorial(3 - k) / math.factorial(3)
        with torch.no_grad():
            log_p = model.log_posterior(x0.masked_fill(pattern, 4), 0.5).gather(-1, x0.unsqueeze(-1)).squeeze(-1)
        total += weight * float((p.flatten() * -(log_p.double() * pattern).sum(1)).sum())
    return total


def characters() -> tuple[str, str]:
    """Nine tenths and one tenth of the documentation of Python's topics, in 27 symbols."""
    import pydoc_data.topics

    words = folded(" ".join(pydoc_data.topics.topics.values()))
    cut = len(words) * 9 // 10
    return words[:cut], words[cut:]


def counts(train: str, test: str, order: int) -> float:
    """Bits a character of counts of `order` characters, with 0.1 added to each."""
    joint, context = (Counter(train[i : i + n] for i in range(len(train) - n + 1)) for n in (order, order - 1))
    pieces = [test[i : i + order] for i in range(len(test) - order + 1)]
    return -sum(math.log2((joint[w] + 0.1) / (context[w[:-1]] + 2.7)) for w in pieces) / len(pieces)


def language(scale: float, steps: int = 270, depth: int = 2, batch_size: int = 64, **options: object) -> None:
    """Masked characters, and what counting gives."""
    train, test = characters()
    print("text: " + ", ".join(f"{n}-grams {counts(train, test, n):.3f}" for n in (1, 2, 3)) + " bits/character")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("train.txt", "test.txt")]
        for path, words in zip(paths, (train, test), strict=True):
            path.write_text(words, "utf-8")
        data = text(paths[0], 64, stride=1)
        held_out = text(paths[1], 64, codec=data.codec)
        x = held_out.read(range(len(held_out)))
    states = data.levels or 0
    torch.manual_seed(0)
    net = sf.nn.Transformer(states + 1, states, width=96, depth=depth, heads=3)
    model = sf.discrete.JumpModel(net, sf.discrete.Absorbing(states), (64,), clock=None)
    model = trained(model, data, int(steps * scale), batch_size, **options)
    bound = sf.discrete.bound(model, x, samples=16, seed=0, batch_size=200, progress=False)
    told(f"masked transformer, {len(x)} held-out pieces of 64", bound.bits_per_dim(), "bits/character")
    for line in data.codec.write(sf.sample(model, 3, seed=0, steps=64, progress=False)):
        print(f"    {line}")


def trigram(scale: float) -> None:
    """Ten minutes of the same."""
    language(scale, 8000, depth=3, batch_size=32, ema=0.998, warmup=100, stratify=True)


def binary(scale: float) -> None:
    """Binarised digits by a masked U-Net, beside independent pixels."""
    train, test = (binarised(sf.digits(train=part)) for part in (True, False))
    x, y = (part.read(range(len(part))) for part in (train, test))
    ink = (x.double().sum(0) + 0.5) / (len(x) + 1)
    alone = -(torch.xlogy(y, ink) + torch.xlogy(1 - y, 1 - ink)).flatten(1).sum(1)
    print("binary: 28 x 28 digits")
    told("independent pixels", alone, "nats")
    torch.manual_seed(0)
    net = sf.nn.StateUNet(3, 1, 2, nf=16, ch_mult=(1, 2, 2), num_res_blocks=1)
    model = sf.discrete.JumpModel(net, sf.discrete.Absorbing(2), (1, 28, 28), clock=None)
    model = trained(model, train, int(130 * scale), 32)
    bound = sf.discrete.bound(model, y, samples=4, seed=0, batch_size=100, progress=False)
    told("masked U-Net", -bound.nats, "nats")
    told("masked U-Net", bound.bits_per_dim(), "bits/pixel")


class Causal(nn.Module):
    """The transformer of the others, each output of which sees what comes before it alone."""

    def __init__(self, states: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.entrance = nn.Embedding(states + 1, width)
        self.places = nn.Parameter(0.1 * torch.randn(49, width))
        self.blocks = nn.ModuleList(Block(width, heads, 0.0, 0) for _ in range(depth))
        self.norm, self.exit = nn.LayerNorm(width), nn.Linear(width, states)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.full_like(x[:, :1], self.entrance.num_embeddings - 1)
        h = self.entrance(torch.cat([start, x[:, :-1]], 1)) + self.places
        for block in self.blocks:
            h = block(h, rotary(h.shape[1], self.width // self.heads, h), None, causal=True)
        return self.exit(self.norm(h))  # type: ignore[no-any-return]


class Sequence(sf.discrete.JumpModel):
    """A causal network in the one trainer: its loss is the exact -log p, at no time."""

    own_loss = staticmethod(lambda model, x0, t=None, noise=None: exact_loss(model, x0))  # type: ignore[assignment]


def exact_loss(model: sf.ScoreModel, x0: Tensor) -> Tensor:
    """-log p(x_0) in nats, (B,)."""
    return nn.functional.cross_entropy(model.net(x0).transpose(1, 2), x0, reduction="none").sum(1)


def levels(scale: float) -> None:
    """One task for every process: digits of 7 x 7 in four levels, as sequences of 49."""
    x, y = (small(sf.digits(train=part)) for part in (True, False))
    law = torch.stack([(x == k).double().mean(0) for k in range(4)], -1).clamp_min(1e-4)
    print("levels: 7 x 7 digits in four levels")
    told("independent pixels", -torch.log(law[torch.arange(49), y]).sum(1), "nats")
    width, depth, heads = 64, 2, 4
    place = {"length": 49}
    makers: dict[str, Callable[[], sf.ScoreModel]] = {
        "masked": lambda: sf.discrete.JumpModel(
            sf.nn.Transformer(5, 4, width, depth, heads, **place), sf.discrete.Absorbing(4), (49,), clock=None
        ),
        "uniform": lambda: sf.discrete.JumpModel(
            sf.nn.Transformer(4, 4, width, depth, heads, time=True, **place), sf.discrete.Uniform(4), (49,)
        ),
        "ordinal": lambda: sf.discrete.JumpModel(
            sf.nn.Transformer(4, 4, width, depth, heads, time=True, **place), sf.discrete.Ordinal(4), (49,)
        ),
        "autoregressive": lambda: Sequence(Causal(4, width, depth, heads), sf.discrete.Absorbing(4), (49,), clock=None),
    }
    for name, make in makers.items():
        torch.manual_seed(0)
        print(f" {name}")
        model = trained(make(), x, int(250 * scale), 64)
        if isinstance(model, Sequence):
            with torch.no_grad():
                told(name, torch.cat([exact_loss(model, part) for part in y.split(100)]), "nats")
            continue
        bound = sf.discrete.bound(model, y, samples=8, seed=0, batch_size=100, progress=False)
        told(name, -bound.nats, "nats")
        begin = time.monotonic()
        solver = sf.discrete.Ancestral() if name == "masked" else Tweedie()
        ink = sf.sample(model, 100, solver, steps=64, seed=0, progress=False).double().mean()
        seconds = time.monotonic() - begin
        print(f"  mean level of samples {float(ink):.3f}, of digits {float(y.double().mean()):.3f} ({seconds:.0f} s)")


def small(data: object) -> Tensor:
    """Pictures (N, 1, 28, 28) of 256 levels as (N, 49) of four."""
    x = data.read(range(len(data))).float()  # type: ignore[attr-defined, arg-type]
    return (nn.functional.avg_pool2d(x, 4) / 64).long().clamp(0, 3).flatten(1)


def main() -> None:
    """Make the runs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=["joint", "text", "binary", "levels"])
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps of each training, but for joint")
    asked = parser.parse_args()
    for run in asked.runs:
        if run == "joint":
            joint()
        else:
            {"text": language, "trigram": trigram, "binary": binary, "levels": levels}[run](asked.scale)


if __name__ == "__main__":
    main()
