"""Frechet distance after equal training: our digits recipe, diffusers' unconditional example, azula's MNIST tutorial.

    python benchmarks/quality.py --minutes 10 --out runs/quality           # run again to go on with what is missing

Every recipe trains on the first 9,000 digits for the same CPU time on one thread (the time of a step is measured first,
which is not counted), with batch size, optimiser, schedule, averaging and sampler as its authors have them. Then 2,000
samples are compared with the held-out thousand by the features of the embedded digit classifier. The row `digits` compares
2,000 training digits with the held-out thousand: what a perfect model would reach.

- ours: `scorefield train digits --labels --times log_normal:-0.3,1.6`, DDIM(eta=1) with 40 steps, labels in equal parts.
- diffusers: examples/unconditional_image_generation with its README's arguments (AdamW, cosine schedule, batch 16, EMA) and
  a UNet2DModel of similar size; DDPM with 250 of the 1,000 steps, which take hours (--diffusers-steps 1000).
- azula: docs/tutorials/mnist (Adam, batch 64, class-conditional), DDIM with 64 steps, labels in equal parts.

Peers without torchvision, next to the torch of an environment VENV that has scorefield:

    python -m venv peers
    echo "import site; site.addsitedir('VENV/lib/python3.11/site-packages')" > peers/lib/python3.11/site-packages/torch.pth
    peers/bin/pip install --no-deps diffusers azula einops
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import scorefield as sf
from scorefield.data import array
from scorefield.evaluation import compare, open_features
from scorefield.evaluation.stored_samples import quantised
from scorefield.times import LogNormalTimes
from scorefield.training.recipes import recipe

SHAPE = (1, 28, 28)
SAMPLE_BATCH = 100
SHORT, LONG = 15, 45
"""Steps of the two runs whose difference is the time of a step."""

Sampler = Callable[[int], Tensor]


@dataclass(frozen=True)
class Trained:
    """A number of weights, and a function that draws n samples as bytes."""

    size: int
    draw: Sampler


def ours(steps: int, options: argparse.Namespace) -> Trained:
    """Our digits recipe, class-conditional and at larger noise than where densities are decided."""
    chosen, data = recipe("digits"), sf.digits()
    config = chosen.config.updated(
        steps=steps,
        seed=options.seed,
        times=LogNormalTimes(mean=-0.3, std=1.6),
        checkpoint_every=steps,
        report=False,
        trackers=(),
        keep_best=False,
    )
    with TemporaryDirectory() as folder:
        model = chosen.build(data, options.seed, labels=True)
        sf.train(model, data, out=folder, config=config, loss=chosen.loss, device="cpu", progress=False)
        model = sf.load(folder)

    def draw(n: int) -> Tensor:
        x = sf.sample(
            model,
            n,
            sf.DDIM(eta=1.0),
            steps=options.our_steps,
            seed=options.seed,
            batch_size=SAMPLE_BATCH,
            progress=False,
            label=torch.arange(n) % 10,
        )
        return quantised(x, 256, model.sde.range, config.dequantize)

    return Trained(count(model), draw)


def diffusers(steps: int, options: argparse.Namespace, images: Tensor | None = None) -> Trained:
    """UNet2DModel, DDPM noise, AdamW with a cosine schedule, EMA: the example's defaults; images (N, C, H, W) in [-1, 1]."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    images = sf.digits().tensor() if images is None else images
    channels, side = images.shape[1:3]
    net = UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=(32, 32, 48),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    noise = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=steps)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    for chosen in epochs(len(images), 16, steps):
        x = images[chosen]
        eps, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        loss = F.mse_loss(net(noise.add_noise(x, eps, t), t).sample, eps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.step(net.parameters())
    average.copy_to(net.parameters())
    net.eval()

    def batch(n: int) -> Tensor:
        noise.set_timesteps(options.diffusers_steps)
        x = torch.randn(n, *images.shape[1:])
        for t in noise.timesteps:
            x = noise.step(net(x, t).sample, t, x).prev_sample
        return quantised(x, 256, (-1.0, 1.0))

    return Trained(count(net), batched(batch))


class Backbone(nn.Module):
    """Azula's U-Net of the tutorial, told the noise level and the class."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        from azula.nn.unet import UNet

        self.net = UNet(
            in_channels=1, out_channels=1, hid_channels=[16, 32, 64], hid_blocks=[2, 2, 2], mod_features=width
        )
        self.label = nn.Embedding(10, width)
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor) -> Any:
        return self.net(x, self.label(label) + self.time(log_snr.unsqueeze(-1)))


def azula(steps: int, options: argparse.Namespace) -> Trained:
    """KarrasDenoiser on the VP schedule, Adam at a constant rate, no averaging: the tutorial's choices."""
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    data = sf.digits()
    images, labels = data.tensor(), data.labels
    assert labels is not None
    denoiser = KarrasDenoiser(backbone=Backbone(), schedule=VPSchedule())
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-4)
    for chosen in epochs(len(images), 64, steps):
        loss = denoiser.loss(images[chosen], torch.rand(len(chosen)), label=labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    denoiser.eval()
    sampler = DDIMSampler(denoiser, steps=64, silent=True)

    def batch(n: int) -> Tensor:
        return quantised(sampler(sampler.init((n, *SHAPE)), label=torch.arange(n) % 10), 256, (-1.0, 1.0))

    return Trained(count(denoiser), batched(batch))


RECIPES: dict[str, Callable[[int, argparse.Namespace], Trained]] = {
    "ours": ours,
    "diffusers": diffusers,
    "azula": azula,
}


def epochs(size: int, batch: int, steps: int) -> Any:
    """Indices of each batch, every item once an epoch, incomplete batches dropped."""
    done = 0
    while done < steps:
        order = torch.randperm(size)
        for start in range(0, size - batch + 1, batch):
            if done < steps:
                yield order[start : start + batch]
            done += 1


def batched(batch: Sampler) -> Sampler:
    """Draws in batches, without gradients."""

    def draw(n: int) -> Tensor:
        with torch.no_grad():
            return torch.cat([batch(min(SAMPLE_BATCH, n - start)) for start in range(0, n, SAMPLE_BATCH)])

    return draw


def count(module: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in module.parameters())


def timed(name: str, steps: int, options: argparse.Namespace) -> tuple[Trained, float]:
    """A recipe with some steps, and the CPU seconds it took."""
    torch.manual_seed(options.seed)
    begin = time.process_time()
    trained = RECIPES[name](steps, options)
    return trained, time.process_time() - begin


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a step, train for the time given, draw."""
    timed(name, 2, options)  # the first call of a kernel costs more
    per_step = (timed(name, LONG, options)[1] - timed(name, SHORT, options)[1]) / (LONG - SHORT)
    steps = max(1, round(60 * options.minutes / per_step))
    trained, seconds = timed(name, steps, options)
    begin = time.process_time()
    save_file({"samples": trained.draw(options.samples)}, options.out / f"{name}.safetensors")
    about = {"parameters": trained.size, "steps": steps, "cpu_seconds": round(seconds, 1)}
    return about | {"sampling_cpu_seconds": round(time.process_time() - begin, 1)}


def main() -> None:
    """Run every recipe that has no result yet, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU minutes of training of each recipe")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--our-steps", type=int, default=40, help="sampling steps of ours")
    parser.add_argument("--diffusers-steps", type=int, default=250, help="sampling steps of diffusers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {k: getattr(options, k) for k in ("minutes", "samples", "our_steps", "diffusers_steps", "seed")}
    network, real = open_features("digits"), sf.digits(train=False)
    made = {"digits": sf.digits()[: options.samples]}
    results: dict[str, dict[str, Any]] = {"digits": {}}
    for name in options.recipes:
        file = options.out / f"{name}.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        if kept.get("settings") != settings:
            kept = {**run(name, options), "settings": settings}
            file.write_text(json.dumps(kept))
        results[name] = {k: v for k, v in kept.items() if k != "settings"}
        made[name] = array(load_file(options.out / f"{name}.safetensors")["samples"])
    for name, items in made.items():
        figures = compare(network, items, real, cache=options.out / "features", progress=False)
        results[name] |= {k: [round(e.value, 5), round(1.96 * e.stderr, 5)] for k, e in figures.items()}
        print(f"{name:10}", json.dumps(results[name]), flush=True)
    if "ours" in results:
        for name in set(results) - {"ours", "digits"}:
            ratio = results["ours"]["frechet"][0] / results[name]["frechet"][0]
            print(f"ours / {name}: {ratio:.3f} (wanted: at most 0.7)")


if __name__ == "__main__":
    main()
