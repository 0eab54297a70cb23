"""How fast the paper's networks run here, next to what the machine can do at best.

    python benchmarks/networks.py                                  # NCSN++ of CIFAR-10, 62.8 M parameters: five minutes
    python benchmarks/networks.py --preset subvp/cifar10_ddpmpp_continuous
    python benchmarks/networks.py --nf 16 --batches 1 2 --repeats 1       # a quick look that it runs

Prints milliseconds an image of an evaluation at each batch size in float32 and bfloat16, the seconds and the peak
memory of a training step (measured in a process of its own: forward, backward, clipping, Adam, weight average), the
floating-point operations of each, and the fraction reached of the machine's ceiling, which is a 3x3 convolution of 256
channels at 16x16, batch 8. Every time is the best of `--repeats`, so that a busy machine spoils it less.
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

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scorefield import presets
from scorefield.nn import low_precision
from scorefield.nn.init import fan_avg_uniform_

GIGA = 1e9


def best(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several runs, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def ceiling(dtype: torch.dtype, repeats: int) -> float:
    """Floating-point operations a second of the convolution that everything is measured against."""
    conv = nn.Conv2d(256, 256, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(8, 256, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = best(lambda: [conv(x) for _ in range(20)], max(repeats, 5)) / 20
    return 2 * 8 * 256 * 16 * 16 * 256 * 9 / seconds


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


def training(name: str, nf: int | None, size: int, repeats: int) -> dict[str, float]:
    """Seconds and peak memory of a training step; call it in a fresh process."""
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

    seconds = best(step, repeats)
    unit = 1 if platform.system() == "Darwin" else 1024
    return {"seconds": seconds, "peak_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}


def training_apart(arguments: argparse.Namespace) -> dict[str, float]:
    """`training` in a process of its own, whose peak memory is its alone."""
    command = [sys.executable, __file__, "--preset", arguments.preset, "--train-batch", str(arguments.train_batch)]
    command += ["--repeats", str(arguments.repeats), "--threads", str(torch.get_num_threads()), "--only-training"]
    command += [] if arguments.nf is None else ["--nf", str(arguments.nf)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Everything, as numbers."""
    repeats = arguments.repeats
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    best_rate = {kind: ceiling(dtype, repeats) for kind, dtype in kinds.items()}
    net = build(arguments.preset, arguments.nf).eval()
    half = low_precision(net)
    nets = {"float32": net, "bfloat16": half}
    x, t = batch(arguments.preset, 1)
    flops = operations(net, x, t)
    forward: dict[str, dict[int, float]] = {}
    with torch.inference_mode():
        for kind, module in nets.items():
            forward[kind] = {}
            for size in arguments.batches:
                x, t = batch(arguments.preset, size)
                forward[kind][size] = best(lambda m=module, x=x, t=t: m(x, t), repeats) / size
        x, t = batch(arguments.preset, 8)
        exact = net(x, t)
        error = float((half(x, t) - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    x, t = batch(arguments.preset, 1)
    flops_step = operations(net, x, t, backward=True)
    del net, half, nets
    trained = training_apart(arguments)
    return {
        "preset": arguments.preset,
        "threads": torch.get_num_threads(),
        "ceiling_flops": best_rate,
        "forward_flops_per_image": flops,
        "forward_seconds_per_image": forward,
        "bfloat16_relative_rms": error,
        "training_batch": arguments.train_batch,
        "training_flops_per_image": flops_step,
        "training_step_seconds": trained["seconds"],
        "training_peak_bytes": trained["peak_bytes"],
    }


def report(r: dict[str, object]) -> str:
    """The numbers as a table."""
    rates, forward = r["ceiling_flops"], r["forward_seconds_per_image"]
    assert isinstance(rates, dict)
    assert isinstance(forward, dict)
    flops, size, seconds = r["forward_flops_per_image"], r["training_batch"], r["training_step_seconds"]
    assert isinstance(flops, float)
    assert isinstance(size, int)
    assert isinstance(seconds, float)
    lines = [f"{r['preset']}, {r['threads']} threads, {flops / GIGA:.2f} GFLOP an image"]
    for kind, rate in rates.items():
        lines.append(f"{kind}: ceiling {rate / GIGA:.0f} GFLOP/s")
        for n, s in forward[kind].items():
            lines.append(f"  batch {n:3d}  {s * 1e3:8.1f} ms an image  {100 * flops / s / rate:5.1f} % of the ceiling")
    lines.append(f"bfloat16 differs by {100 * float(str(r['bfloat16_relative_rms'])):.2f} % RMS")
    work = float(str(r["training_flops_per_image"])) * size
    share = 100 * work / seconds / rates["float32"]
    lines.append(f"training step, batch {size}: {seconds:.2f} s, {work / GIGA:.0f} GFLOP, {share:.1f} % of the ceiling")
    if size in forward["float32"]:
        lines.append(f"  {seconds / (forward['float32'][size] * size):.2f} times the evaluation of the same batch")
    lines.append(f"  {float(str(r['training_peak_bytes'])) / GIGA:.2f} GB peak resident memory")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ve/cifar10_ncsnpp_continuous", choices=presets.names(), metavar="NAME")
    parser.add_argument("--nf", type=int, help="another width, to see quickly that it runs")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--train-batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--only-training", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only_training:
        numbers = training(arguments.preset, arguments.nf, arguments.train_batch, arguments.repeats)
        print(json.dumps(numbers))
        return
    numbers = measure(arguments)
    print(json.dumps(numbers, indent=2) if arguments.json else report(numbers))


if __name__ == "__main__":
    main()
