"""What an accelerator launches, is sent and is asked for in one step of a solver and in one loss: python tools/launches.py

Counted on the make-believe device of tests/accelerator.py, with a network of one linear layer, so that what is counted is
the library's own work. Views and allocations without values launch nothing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import scorefield as sf
from accelerator import DEVICE, Accelerator

N, D = 64, 16


class Linear(torch.nn.Module):
    """One kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(D, D)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def count(work: Callable[[sf.ScoreModel, torch.Tensor], object]) -> Counter[str]:
    """Kernels by name, and what was sent and read back."""
    with Accelerator(float64=True) as device:
        model = sf.ScoreModel(Linear().to(DEVICE), sf.VP(), "noise", shape=(D,))
        x = torch.randn(N, D).to(DEVICE)
        device.launched.clear()
        device.read = device.sent = 0
        work(model, x)
        return Counter(device.launched) + Counter({"sent": device.sent, "read": device.read})


def step(solver: object) -> Counter[str]:
    """One more step in the middle of a grid."""

    def steps(k: int) -> Counter[str]:
        return count(lambda model, x: sf.sample(model, N, solver, steps=k, x_init=x, seed=0, denoise=False))

    many = steps(9)
    many.subtract(steps(8))
    return many


def main() -> None:
    """Print the table."""
    place = sf.solve if hasattr(sf.solve, "DPMSolver") else sf
    found = {
        "DPMSolver(2), a step": step(place.DPMSolver()),
        "DDIM, a step": step(place.DDIM()),
        "EulerMaruyama, a step": step(place.EulerMaruyama()),
        "dsm_loss": count(lambda model, x: sf.dsm_loss(model, x, seed=0)),
        "dsm_loss with its gradient": count(lambda model, x: sf.dsm_loss(model, x, seed=0).mean().backward()),
        "velocity at the times of single samples": count(
            lambda model, x: model.velocity(x, torch.rand(N).to(x.device))
        ),
    }
    print(f"{'':42}{'kernels':>8}{'sent':>6}{'read':>6}")
    for what, counter in found.items():
        sent, read = counter.pop("sent", 0), counter.pop("read", 0)
        print(f"{what:42}{sum(counter.values()):8}{sent:6}{read:6}")


if __name__ == "__main__":
    main()
