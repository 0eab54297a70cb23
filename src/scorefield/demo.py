"""The main job end to end: train on the embedded digits, sample, score, inpaint, and write one page about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from scorefield.data import Dataset, digits
from scorefield.evaluation.digit_classifier import digit_classifier
from scorefield.guide import ClassifierFree
from scorefield.inverse import Mask, Replace
from scorefield.likelihood import dequantize, log_prob
from scorefield.model import ScoreModel
from scorefield.plot import image_grid, save_image
from scorefield.progress import say
from scorefield.report import Report
from scorefield.sampling import sample
from scorefield.solve import DDIM, PC, Ancestral, Dopri5, Langevin
from scorefield.solve.integrate import Solution
from scorefield.times import LogNormalTimes
from scorefield.training import Run, train
from scorefield.training.log import read_log
from scorefield.training.recipes import Recipe, recipe

MINUTES = 4.0
"""Minutes of training; the rest takes two more on two cores, so that a machine half as fast ends within ten."""
CLASSES, COLUMNS = 10, 8
GUIDANCE = 2.0
SURE = 0.9
"""A digit is plain if the embedded classifier gives its class more than this."""
TOLERANCE = 1e-4
SCORED, SCORED_AT_A_TIME, SCORING_SECONDS = 100, 20, 75.0
"""Digits whose likelihood is computed, at most; a slow machine stops after so many seconds."""
PIXEL_HISTOGRAM = 1.736
"""Bits/dim of independent pixels on the same held-out digits: a histogram of every pixel of the 9,000 training digits."""
FULL_GAUSSIAN = 6.06
"""Bits/dim of a Gaussian with full covariance on the dequantised digits."""
LEVELS = 256
FIRST_SHOWN, LAST_SHOWN = 0.25, 0.8
"""The part of the way from noise to data in which something is to be seen."""

Result = TypeVar("Result")


@dataclass
class _Stages:
    """Runs the parts of the job, says what is being done, times them and keeps their lines of the table."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    def __call__(self, name: str, work: Callable[[], tuple[Result, str, str]]) -> Result:
        say(f"demo: {name.lower()}")
        begin = time.monotonic()
        result, nfe, figure = work()
        self.rows.append((name, figure, nfe, f"{time.monotonic() - begin:.0f} s"))
        return result


def main(
    out: str | Path = "runs/demo",
    *,
    steps: int | None = None,
    minutes: float = MINUTES,
    seed: int = 0,
    pc_steps: int = 100,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train, sample, score and inpaint; write report.html and PNGs into `out`. The same call again goes on with it.

    Main arguments:
        steps: training steps; planned by the clock, for `minutes` of training over all attempts, unless given.
        pc_steps: predictor-corrector steps.

    Returns:
        The figures of the report: share of plain digits, bits per dimension with standard error, steps and evaluations. Of a
        training that a signal ended: `finished` False and the step it had come to, and no page is written.

    Raises:
        OutputError: the folder cannot be written to.
    """
    folder, data, held_out = Path(out), digits(), digits(train=False)
    plan = _plan(steps, minutes)
    say("demo: training on 9,000 digits" + ("" if steps else f" for {minutes:g} minutes, planned by the clock"))
    run = train(plan.build(data, seed, labels=True), data, out=folder, config=plan.config, seed=seed, progress=progress)
    if not run.finished and run.stopped != "the clock":
        print(f"{out}: stopped by {run.stopped} at training step {run.step}; the same command goes on from here")
        return {"finished": False, "step": run.step, "stopped": run.stopped}
    stages = _Stages([_training_row(run)])
    model = run.model | ClassifierFree(GUIDANCE)
    fast = stages(
        f"{CLASSES * COLUMNS} digits of given classes", lambda: _draw(model, DDIM(eta=1.0), 19, seed, progress)
    )
    plain = plain_share(fast.x)
    slow = stages("Predictor-corrector samples", lambda: _draw(run.model, _corrected(), pc_steps, seed, progress, 4))
    bits, error, scored = stages("Likelihood of held-out digits", lambda: _score(run.model, held_out, seed, progress))
    panel = stages("Inpaint the lower half", lambda: _inpaint(run.model, held_out, pc_steps, seed, progress))
    page = _Page(folder, run, held_out, stages.rows)
    page.write(fast, slow, panel, plain, (bits, error, scored))
    return {
        "finished": True,
        "steps": run.step,
        "plain": plain,
        "bits_per_dim": bits,
        "stderr": error,
        "scored": scored,
        "pc_nfe": float(slow.nfe[0]),
        "fast_nfe": float(fast.nfe[0]),
    }


def plain_share(x: Tensor, *, columns: int = COLUMNS) -> float:
    """The share of digits, in rows by class, of whose class the embedded classifier is more than `SURE`."""
    label = torch.arange(len(x)) // columns
    certain = digit_classifier()(x.detach().float().cpu()).softmax(1)[torch.arange(len(x)), label]
    return float((certain > SURE).double().mean())


def _plan(steps: int | None, minutes: float) -> Recipe:
    """The digits recipe, with classes and at the larger noise where strokes are decided (docs/demo.md)."""
    plan = recipe("digits")
    chosen: dict[str, Any] = {"minutes": minutes, "steps": 20_000} if steps is None else {"steps": steps}
    config = plan.config.updated(
        times=LogNormalTimes(mean=-0.3, std=1.6),
        label_dropout=0.1,
        schedule="cooldown",
        report=False,
        checkpoint_every=250,
        **chosen,
    )
    return Recipe(plan.name, plan.model, config, plan.shape, plan.data, plan.loss)


def _training_row(run: Run) -> tuple[str, str, str, str]:
    size = sum(p.numel() for p in run.model.parameters())
    seconds = [line["seconds"] for line in read_log(run.path) if "seconds" in line]
    late = f" of {run.steps:,} planned, since the machine became slow" if run.stopped else ""
    figure = f"{run.step:,} steps{late}, {size / 1e6:.2f} M parameters"
    return "Train on 9,000 digits", figure, "-", f"{seconds[-1]:.0f} s" if seconds else "-"


def _corrected() -> PC:
    return PC(Ancestral(), Langevin(snr=0.1))


def _draw(
    model: ScoreModel, solver: Any, steps: int, seed: int, progress: bool | None, columns: int = COLUMNS
) -> tuple[Solution, str, str]:
    """Digits in rows by class. With the final denoising step, `steps` + 1 calls of a solver of one call a step."""
    label = torch.arange(CLASSES * columns) // columns
    done = sample(model, len(label), solver, steps=steps, seed=seed, full=True, progress=progress, label=label)
    share = plain_share(done.x, columns=columns)
    return done, f"{int(done.nfe[0])}", f"{100 * share:.0f} % plain"


def _score(
    model: ScoreModel, held_out: Dataset, seed: int, progress: bool | None
) -> tuple[tuple[float, float, int], str, str]:
    """Bits/dim of held-out digits whose class is not told, its standard error, and their number."""
    begin, interval = time.monotonic(), model.sde.range
    found: list[Tensor] = []
    calls: list[Tensor] = []
    while not found or (len(found) * SCORED_AT_A_TIME < SCORED and time.monotonic() - begin < SCORING_SECONDS):
        index = range(len(found) * SCORED_AT_A_TIME, (len(found) + 1) * SCORED_AT_A_TIME)
        x = dequantize(held_out.read(index), LEVELS, *interval, seed=[seed + i for i in index])
        seeds, solver = [seed + 1000 + i for i in index], Dopri5(TOLERANCE, TOLERANCE)
        lp = log_prob(model, x, probes=1, seed=seeds, solver=solver, progress=progress)
        found.append(lp.bits_per_dim(LEVELS, *interval))
        calls.append(lp.nfe.double())
    bits = torch.cat(found).double()
    mean, error = float(bits.mean()), float(bits.std()) / len(bits) ** 0.5
    text = f"{mean:.3f} ± {error:.3f} bits/dim, {len(bits)} digits"
    return (mean, error, len(bits)), f"{torch.cat(calls).mean():.0f}", text


def _inpaint(
    model: ScoreModel, held_out: Dataset, steps: int, seed: int, progress: bool | None
) -> tuple[Tensor, str, str]:
    """Complete the lower half of eight held-out digits, four times each; rows of the panel: truth, known, completions."""
    truth = held_out[:8].tensor(model.sde.range)
    known = torch.zeros(truth.shape[1:], dtype=torch.bool)
    known[..., : truth.shape[-2] // 2, :] = True
    operator = Mask(known)
    hooks = [Replace(operator, operator(truth).repeat(4, 1, 1, 1))]
    done = sample(model, 32, _corrected(), steps=steps, seed=seed + 1, hooks=hooks, full=True, progress=progress)
    shown = torch.where(known, truth, torch.zeros_like(truth))
    return torch.cat([truth, shown, done.x]), f"{int(done.nfe[0])}", "8 digits, 4 completions each"


@dataclass
class _Page:
    """report.html, its pictures, and the same in words on the terminal."""

    folder: Path
    run: Run
    held_out: Dataset
    rows: list[tuple[str, str, str, str]]

    def write(
        self, fast: Solution, slow: Solution, panel: Tensor, plain: float, score: tuple[float, float, int]
    ) -> None:
        """Write everything."""
        (bits, error, scored), calls = score, (int(fast.nfe[0]), int(slow.nfe[0]))
        pictures = {
            "samples.png": image_grid(fast.x, columns=COLUMNS, zoom=2),
            "real.png": image_grid(self._real(), columns=COLUMNS, zoom=2),
            "samples_pc.png": image_grid(slow.x, columns=4, zoom=2),
            "trajectory.png": image_grid(_journey(fast), columns=10, zoom=3),
            "inpainting.png": image_grid(panel, columns=8, zoom=3),
        }
        for name, picture in pictures.items():
            save_image(picture, self.folder / name)
        report = Report(
            "scorefield: a score model of handwritten digits",
            "Trained, sampled, scored and conditioned on this machine, from 9,000 embedded MNIST digits.",
        )
        text = (
            f"A class a row, {calls[0]} network calls each. A classifier is more than 90 % sure of {100 * plain:.0f} %."
        )
        report.picture("Drawn by the model", text, self.folder / "samples.png")
        report.picture("Real digits that it never saw", "For comparison, a class a row.", self.folder / "real.png")
        report.picture(
            "From noise to digits",
            "Six samples on their way: pure noise on the left, the digit on the right.",
            self.folder / "trajectory.png",
            wide=True,
        )
        report.picture(
            "Inpainting",
            "Held-out digits, what the model was shown, and four completions of each.",
            self.folder / "inpainting.png",
        )
        text = f"The paper's sampler: {calls[1]} network calls each, without guidance, a class a row."
        report.picture("Predictor-corrector samples", text, self.folder / "samples_pc.png")
        report.table(
            "How probable are real digits? Held-out likelihood in bits/dim",
            ("model", "bits/dim"),
            [
                (f"this model, by the probability flow ({scored} digits)", f"{bits:.3f} ± {error:.3f}"),
                ("independent pixels, a histogram of each", f"{PIXEL_HISTOGRAM:.3f}"),
                ("a Gaussian with full covariance", f"{FULL_GAUSSIAN:.2f}"),
            ],
            "Bits/dim is how many bits a pixel costs a program that compresses digits it has never seen with this model: "
            "raw 8-bit pixels cost 8, and less is better. This model is trained to draw well; "
            "`scorefield train digits` is made for this figure.",
        )
        report.table("What was done", ("", "result", "network calls", "time"), self.rows)
        losses = [(line["step"], line["loss"]) for line in read_log(self.folder) if "loss" in line]
        report.curves("Training loss", "Denoising score matching.", {"loss": losses}, ("step", "loss"), log_y=True)
        report.commands("What to do next", _next(self.folder))
        report.write(self.folder / "report.html")
        _print(self.rows, self.folder, plain, bits, error)

    def _real(self) -> Tensor:
        """Held-out digits in rows by class."""
        assert self.held_out.labels is not None
        found = [(self.held_out.labels == k).nonzero().flatten()[:COLUMNS].tolist() for k in range(CLASSES)]
        return torch.cat([self.held_out.subset(index).tensor(self.run.model.sde.range) for index in found])


def _journey(done: Solution) -> Tensor:
    """Six samples of different classes at ten times, the last one the end."""
    last = len(done.path) - 1
    middle = torch.linspace(FIRST_SHOWN * last, LAST_SHOWN * last, 9).round().long()
    pick = torch.cat([middle, torch.tensor([last])])
    return done.path[pick][:, COLUMNS : 7 * COLUMNS : COLUMNS].transpose(0, 1).flatten(0, 1)


def _next(folder: Path) -> list[tuple[str, str]]:
    return [
        ("Sixteen more threes, more strictly of their class", f"scorefield generate {folder} --label 3 --guidance 2"),
        ("Go on with other pictures: a folder of your own", "scorefield statistics photos/ --size 32"),
        (
            "Judge it: distances to real digits, each with its error",
            f"scorefield evaluate {folder} --data digits -n 500",
        ),
        ("What is wrong with it, in a page with figures and advice", f"scorefield diagnose {folder} --data digits"),
        ("The density model that comes with the package", "scorefield likelihood digits --data digits -n 20"),
        ("The same in Python", f"import scorefield as sf; model = sf.load({str(folder)!r})"),
    ]


def _print(rows: list[tuple[str, str, str, str]], folder: Path, plain: float, bits: float, error: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "result", "network calls", "time")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"{100 * plain:.0f} % of the digits are plain to a classifier")
    console.print(f"held-out {bits:.3f} ± {error:.3f} bits/dim; independent pixels {PIXEL_HISTOGRAM}")
    console.print(f"report: {folder / 'report.html'}")
