"""How fast the paper's networks run here, next to what the machine can do at best.

    python benchmarks/networks.py                                  # NCSN++ of CIFAR-10, 62.8 M parameters: five minutes
    python benchmarks/networks.py --preset subvp/cifar10_ddpmpp_continuous
    python benchmarks/networks.py --nf 16 --batches 1 2 --repeats 1       # a quick look that it runs

Prints milliseconds an image of an evaluation at each batch size in float32 and bfloat16, the seconds and the peak
memory of a training step (measured in a process of its own: forward, backward, clipping, Adam, weight average), the
floating-point operations of each, and the fraction reached of the machine's ceiling, which is a 3x3 convolution of 256
channels at 16x16, batch 8. Every run is preceded by its own ceiling, and takes its turn in each of `--repeats` rounds; every
figure is the median over the rounds, ratios being taken within a round, so that a machine that changes its speed spoils
them less.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scorefield import presets
from scorefield.nn import low_precision
from scorefield.nn.initial import fan_avg_uniform_

GIGA = 1e9


def seconds(run: Callable[[], object]) -> float:
    """Seconds that a run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ceiling(dtype: torch.dtype) -> Callable[[], object]:
    """The convolution that everything is measured against, twenty times."""
    conv = nn.Conv2d(256, 256, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(8, 256, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(20):
                conv(x)

    return run


CEILING_FLOPS = 20 * 2 * 8 * 256 * 16 * 16 * 256 * 9


def build(name: str, nf: int | None) -> nn.Module:
    """The network of a preset with random weights throughout, those that start at zero included."""
    preset = presets.get(name)
    if nf is not None:
        preset = preset.but(name, model={"nf": nf})
    torch.manual_seed(0)
    net = preset.score_model().net
    for parameter in net.parameters():
        if parameter.requires_grad and parameter.ndim > 1 and parameter.std() < 1e-4:
            fan_avg_uniform_(parameter.detach())
    return net.to(memory_format=torch.channels_last)


def batch(name: str, size: int) -> tuple[Tensor, Tensor]:
    """Images and labels such as the network receives."""
    side = presets.get(name).data.image_size
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, torch.linspace(1.0, 40.0, size)


def operations(net: nn.Module, x: Tensor, t: Tensor, backward: bool = False) -> float:
    """Floating-point operations of an evaluation, or of an evaluation and its gradient."""
    with FlopCounterMode(display=False) as counter:
        if backward:
            net(x, t).square().sum().backward()
        else:
            with torch.no_grad():
                net(x, t)
    return float(counter.get_total_flops())


def training(name: str, nf: int | None, size: int) -> Callable[[], object]:
    """A training step: forward, backward, clipping, Adam, weight average."""
    net = build(name, nf).train()
    parameters = [p for p in net.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.Adam(parameters, 2e-4, fused=True)
    x, t = batch(name, size)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        net(x, t).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1e-3)

    return step


def evaluation(net: nn.Module, name: str, size: int) -> Callable[[], object]:
    """An evaluation of a batch of this size."""
    x, t = batch(name, size)

    def run() -> None:
        with torch.inference_mode():
            net(x, t)

    return run


def peak_apart(arguments: argparse.Namespace) -> float:
    """Peak resident bytes of two training steps in a process of their own."""
    command = [sys.executable, __file__, "--preset", arguments.preset, "--train-batch", str(arguments.train_batch)]
    command += ["--threads", str(torch.get_num_threads()), "--only-training"]
    command += [] if arguments.nf is None else ["--nf", str(arguments.nf)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, as numbers; every kind of run takes its turn in every round."""
    name = arguments.preset
    peak = peak_apart(arguments)  # first: a child starts from the peak of its parent
    net = build(name, arguments.nf).eval()
    half = low_precision(net)
    x, t = batch(name, 1)
    flops, flops_step = operations(net, x, t), operations(net, x, t, backward=True)
    with torch.inference_mode():
        x, t = batch(name, 8)
        exact = net(x, t)
        error = float((half(x, t) - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    runs: dict[str, Callable[[], object]] = {}
    for kind, module, dtype in (("float32", net, torch.float32), ("bfloat16", half, torch.bfloat16)):
        for size in arguments.batches:
            runs[f"{kind} ceiling {size}"] = ceiling(dtype)
            runs[f"{kind} {size}"] = evaluation(module, name, size)
    runs["evaluation"] = evaluation(net, name, arguments.train_batch)
    runs["training"] = training(name, arguments.nf, arguments.train_batch)
    for run in runs.values():
        run()
    rounds = [{key: seconds(run) for key, run in runs.items()} for _ in range(arguments.repeats)]
    took = {key: np.array([r[key] for r in rounds]) for key in runs}
    forward: dict[str, dict[int, dict[str, float]]] = {"float32": {}, "bfloat16": {}}
    for kind, sizes in forward.items():
        for size in arguments.batches:
            rate, limit = flops * size / took[f"{kind} {size}"], CEILING_FLOPS / took[f"{kind} ceiling {size}"]
            sizes[size] = {
                "seconds_per_image": float(np.median(took[f"{kind} {size}"])) / size,
                "ceiling_flops": float(np.median(limit)),
                "share": float(np.median(rate / limit)),
            }
    return {
        "preset": name,
        "threads": torch.get_num_threads(),
        "forward_flops_per_image": flops,
        "forward": forward,
        "bfloat16_relative_rms": error,
        "training_batch": arguments.train_batch,
        "training_flops_per_image": flops_step,
        "training_step_seconds": float(np.median(took["training"])),
        "training_step_evaluations": float(np.median(took["training"] / took["evaluation"])),
        "training_peak_bytes": peak,
    }


def report(r: dict[str, Any]) -> str:
    """The numbers as a table."""
    lines = [f"{r['preset']}, {r['threads']} threads, {r['forward_flops_per_image'] / GIGA:.2f} GFLOP an image"]
    for kind, sizes in r["forward"].items():
        for n, f in sizes.items():
            lines.append(
                f"{kind:8s} batch {n:3d}  {f['seconds_per_image'] * 1e3:8.1f} ms an image"
                f"  {100 * f['share']:5.1f} % of the ceiling ({f['ceiling_flops'] / GIGA:.0f} GFLOP/s)"
            )
    lines.append(f"bfloat16 differs by {100 * r['bfloat16_relative_rms']:.2f} % RMS")
    work = r["training_flops_per_image"] * r["training_batch"] / GIGA
    lines.append(f"training step, batch {r['training_batch']}: {r['training_step_seconds']:.2f} s, {work:.0f} GFLOP")
    lines.append(f"  {r['training_step_evaluations']:.2f} times the evaluation of the same batch")
    lines.append(f"  {r['training_peak_bytes'] / GIGA:.2f} GB peak resident memory")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ve/cifar10_ncsnpp_continuous", choices=presets.names(), metavar="NAME")
    parser.add_argument("--nf", type=int, help="another width, to see quickly that it runs")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--train-batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--only-training", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only_training:
        step = training(arguments.preset, arguments.nf, arguments.train_batch)
        step()
        step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024))
        return
    numbers = measure(arguments)
    print(json.dumps(numbers, indent=2) if arguments.json else report(numbers))


if __name__ == "__main__":
    main()
