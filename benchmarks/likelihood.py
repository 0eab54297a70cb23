"""What a value with its Hutchinson divergence costs, in evaluations of the network, for every way of differentiating.

    python benchmarks/likelihood.py [--preset ve/cifar10_ncsnpp_continuous] [--batch 4] [--rounds 5]

Times are CPU seconds of one thread, the least of `rounds` that visit every way in turn, so that a busy machine disturbs
all alike. Extra memory is the growth of the peak resident set over that of a process which only evaluates; each way runs
in a process of its own
(Linux).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from scorefield import ScoreModel, presets
from scorefield.likelihood.log_prob import AugmentedFlow
from scorefield.likelihood.trace import Forward, Hutchinson, Linearizer, Reverse, TorchForward
from scorefield.solve.integrate import Field

WAYS = ("value", "auto", "forward", "lean", "reverse", "torch.func.jvp", "official")


@cache
def load(preset: str) -> ScoreModel:
    """The network with fresh weights."""
    torch.manual_seed(0)
    return presets.get(preset).score_model().eval()


def ways(name: str, preset: str, batch: int) -> Callable[[], object]:
    """The work that is measured, ready to run."""
    model = load(preset)
    x = torch.rand(batch, *(model.shape or (3, 32, 32)))
    t = torch.full((batch,), 0.5, dtype=torch.float64)
    probe = torch.randn(1, *x.shape).sign()

    def velocity(z: Tensor) -> Tensor:
        return model.velocity(z, t)

    def value() -> Tensor:
        with torch.no_grad():
            return velocity(x)

    def official() -> Tensor:
        """The drift once for the value, and again with a graph for the divergence."""
        value()
        return Reverse(velocity, x).products(probe)

    if name == "value":
        return value
    if name == "official":
        return official
    linearizer = Linearizer("lean" if name == "lean" else "auto")
    chosen = {"forward": Forward, "reverse": Reverse, "torch.func.jvp": TorchForward}
    if name in chosen:
        linearizer.chosen = chosen[name]
    flow = AugmentedFlow(Field(model, {}, batch), x.shape[1:], x.dtype, Hutchinson(probe, linearizer), linearizer)
    y = torch.cat([x.double().flatten(1), torch.zeros(batch, 1, dtype=torch.float64)], 1)
    return lambda: flow.velocity(y, t)


def main() -> None:
    """Measure all ways and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ve/cifar10_ncsnpp_continuous")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        run = ways(arguments.memory_of, arguments.preset, arguments.batch)
        run()
        Path("/proc/self/clear_refs").write_text("5")  # start the peak afresh: loading the network has one of its own
        run()
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
        return
    runs = {name: ways(name, arguments.preset, arguments.batch) for name in WAYS}
    least = dict.fromkeys(WAYS, float("inf"))
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            least[name] = min(least[name], time.process_time() - begin)
    peaks = {}
    for name in WAYS:
        options = ["--preset", arguments.preset, "--batch", str(arguments.batch), "--memory-of", name]
        done = subprocess.run([sys.executable, __file__, *options], check=True, capture_output=True, text=True)
        peaks[name] = int(done.stdout.split()[-1])
    rows = [
        {
            "way": name,
            "seconds": round(least[name], 3),
            "evaluations": round(least[name] / least["value"], 2),
            "extra_megabytes": round((peaks[name] - peaks["value"]) / 1e6, 1),
        }
        for name in WAYS
    ]
    if arguments.json:
        print(json.dumps({"preset": arguments.preset, "batch": arguments.batch, "rows": rows}))
        return
    print(f"{arguments.preset}, batch {arguments.batch}: value and one Hutchinson product")
    for row in rows:
        print(
            f"{row['way']:>15}  {row['seconds']:8.3f} s  {row['evaluations']:5.2f} x  {row['extra_megabytes']:8.1f} MB more"
        )


if __name__ == "__main__":
    main()
