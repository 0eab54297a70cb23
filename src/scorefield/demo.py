"""The main job end to end: train on the embedded digits, sample, score, inpaint, and write one page about it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from scorefield.data import Dataset, digits
from scorefield.inverse import Mask, Replace
from scorefield.likelihood import dequantize, log_prob
from scorefield.model import ScoreModel
from scorefield.plot import curve, image_grid, save_image
from scorefield.report import Report
from scorefield.sampling import sample
from scorefield.solve.exponential import DDIM
from scorefield.solve.integrate import Solution
from scorefield.solve.ode import Dopri5
from scorefield.solve.pc import PC, Langevin
from scorefield.solve.reverse import Ancestral

LEVELS = 256
PIXEL_HISTOGRAM = 1.736
"""Bits/dim of independent pixels on the same held-out digits: a histogram of every pixel of the 9,000 training digits."""
FULL_GAUSSIAN = 6.06
"""Bits/dim of a Gaussian with full covariance on the dequantised digits."""

Result = TypeVar("Result")


@dataclass
class _Stage:
    """Runs a part of the job, times it and keeps its line of the table."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def __call__(self, name: str, work: Callable[[], tuple[Result, str, str]]) -> Result:
        begin = time.monotonic()
        result, nfe, figure = work()
        self.rows.append((name, figure, nfe, f"{time.monotonic() - begin:.0f} s"))
        return result


def main(
    out: str | Path = "runs/demo",
    *,
    steps: int | None = None,
    seed: int = 0,
    count: int = 64,
    scored: int = 100,
    pc_steps: int = 150,
    progress: bool | None = None,
) -> dict[str, float]:
    """Train, sample, score and inpaint; write report.html and PNGs into `out`.

    Main arguments:
        steps: training steps; the recipe's own by default. count: samples. scored: held-out digits whose likelihood is
            computed. pc_steps: predictor-corrector steps.

    Returns:
        The figures of the report: bits per dimension with standard error, evaluations and seconds.

    Raises:
        OutputError: the folder cannot be written to.
    """
    from scorefield.training import train
    from scorefield.training.recipes import recipe

    folder, stage, plan = Path(out), _Stage(), recipe("digits")
    config = plan.config if steps is None else plan.config.updated(steps=steps)
    data, held_out = digits(), digits(train=False)

    def training() -> tuple[ScoreModel, str, str]:
        run = train(plan.build(data, seed), data, out=folder, config=config, seed=seed, progress=progress)
        size = sum(p.numel() for p in run.model.parameters())
        return run.model, "-", f"{config.steps:,} steps, {size / 1e6:.2f} M parameters"

    model = stage("Train on 9,000 digits", training)

    def predictor_corrector() -> tuple[Solution, str, str]:
        result = sample(model, count, _corrected(), steps=pc_steps, seed=seed, full=True, progress=progress)
        return result, f"{int(result.nfe[0])}", f"{count} digits"

    slow = stage("Predictor-corrector samples", predictor_corrector)

    def few_calls() -> tuple[Solution, str, str]:
        # 19 steps and the final denoising step: 20 calls
        result = sample(model, count, DDIM(eta=1.0), steps=19, seed=seed, full=True, progress=progress)
        return result, f"{int(result.nfe[0])}", f"{count} digits"

    fast = stage("Fast samples", few_calls)

    def likelihood() -> tuple[tuple[float, float], str, str]:
        x = dequantize(held_out[:scored].read(range(scored)), LEVELS, *model.sde.range, seed=seed)
        lp = log_prob(model, x, probes=1, seed=seed, batch_size=50, solver=Dopri5(1e-4, 1e-4), progress=progress)
        bits = lp.bits_per_dim(LEVELS, *model.sde.range)
        mean, error = float(bits.mean()), float(bits.std()) / math.sqrt(len(bits))
        return (mean, error), f"{lp.nfe.double().mean():.0f}", f"{mean:.3f} ± {error:.3f} bits/dim"

    bits, error = stage(f"Likelihood of {scored} held-out digits", likelihood)

    def inpainting() -> tuple[tuple[Tensor, int], str, str]:
        result, truth = _inpaint(model, held_out, pc_steps, seed, progress)
        return (truth, 0), f"{int(result.nfe[0])}", "8 digits, 4 completions each"

    panel, _ = stage("Inpaint the lower half", inpainting)

    _write(folder, stage.rows, slow, fast, panel, (bits, error))
    _print(stage.rows, folder, bits, error)
    figures = {"bits_per_dim": bits, "stderr": error, "pc_nfe": float(slow.nfe[0]), "fast_nfe": float(fast.nfe[0])}
    return figures


def _corrected() -> PC:
    return PC(Ancestral(), Langevin(snr=0.1))


def _inpaint(
    model: ScoreModel, held_out: Dataset, steps: int, seed: int, progress: bool | None
) -> tuple[Solution, Tensor]:
    """Complete the lower half of eight held-out digits, four times each; rows of the panel: truth, known, completions."""
    truth = held_out[:8].tensor(model.sde.range)
    known = torch.zeros(truth.shape[1:], dtype=torch.bool)
    known[..., : truth.shape[-2] // 2, :] = True
    operator = Mask(known)
    measured = operator(truth).repeat(4, 1, 1, 1)
    hooks = [Replace(operator, measured)]
    result = sample(model, 32, _corrected(), steps=steps, seed=seed + 1, hooks=hooks, full=True, progress=progress)
    shown = torch.where(known, truth, torch.zeros_like(truth))
    return result, torch.cat([truth, shown, result.x])


def _write(
    folder: Path,
    rows: list[tuple[str, str, str, str]],
    slow: Solution,
    fast: Solution,
    panel: Tensor,
    score: tuple[float, float],
) -> None:
    last = len(slow.path) - 1
    pick = torch.cat([torch.linspace(0.25 * last, 0.8 * last, 9).round().long(), torch.tensor([last])])
    journey = slow.path[pick, :6].transpose(0, 1).flatten(0, 1)
    pictures = {
        "samples_pc.png": image_grid(slow.x, zoom=3),
        "samples_fast.png": image_grid(fast.x, zoom=3),
        "trajectory.png": image_grid(journey, columns=10, zoom=3),
        "inpainting.png": image_grid(panel, columns=8, zoom=3),
    }
    for name, picture in pictures.items():
        save_image(picture, folder / name)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    entries = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    curve(folder / "loss.png", {"loss": ([s for s, _ in entries], [v for _, v in entries])}, "step", "loss", log_y=True)

    report = Report(
        "scorefield: a score model of handwritten digits",
        "Trained, sampled, scored and conditioned on this machine, from 9,000 embedded MNIST digits.",
    )
    report.table("What was done", ("", "result", "network calls", "time"), rows)
    report.table(
        "Held-out likelihood, bits/dim (lower is better)",
        ("model", "bits/dim"),
        [
            ("this model, probability flow", f"{score[0]:.3f} ± {score[1]:.3f}"),
            ("independent pixels, histogram", f"{PIXEL_HISTOGRAM:.3f}"),
            ("Gaussian with full covariance", f"{FULL_GAUSSIAN:.2f}"),
        ],
    )
    calls = int(slow.nfe[0]), int(fast.nfe[0])
    report.picture("Predictor-corrector samples", f"{calls[0]} network calls each.", folder / "samples_pc.png")
    report.picture("Fast samples", f"{calls[1]} network calls each, from the same seeds.", folder / "samples_fast.png")
    report.picture(
        "From noise to digits", "Six samples along the reverse process.", folder / "trajectory.png", wide=True
    )
    report.picture(
        "Inpainting",
        "Held-out digits, what the model was shown, and four completions of each.",
        folder / "inpainting.png",
    )
    report.picture("Training loss", "Denoising score matching.", folder / "loss.png", pixels=False)
    report.write(folder / "report.html")


def _print(rows: list[tuple[str, str, str, str]], folder: Path, bits: float, error: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "result", "network calls", "time")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"held-out {bits:.3f} ± {error:.3f} bits/dim; independent pixels {PIXEL_HISTOGRAM}")
    console.print(f"report: {folder / 'report.html'}")
