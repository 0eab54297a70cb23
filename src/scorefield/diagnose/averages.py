"""Averages of the weights that a run keeps: which of them predicts noise best, at each noise level."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from scorefield.diagnose.calibration import noise_levels, noised
from scorefield.diagnose.chapter import SURE, Case, Chapter, judge, pair
from scorefield.evaluation.metrics import Estimate, mean_of
from scorefield.model import ScoreModel
from scorefield.training.checkpoint import read_checkpoint
from scorefield.training.run import chosen_checkpoint, load, load_weights, read_run
from scorefield.training.weights import POWER

Loader = Callable[[], ScoreModel]


def other_averages(run: str | Path, device: str) -> dict[str, Loader] | None:
    """What else than its average ("ema") the chosen checkpoint of a run holds, by name; None where there is nothing."""
    checkpoint = chosen_checkpoint(read_run(run).path, None)
    if checkpoint is None:
        return None
    path = checkpoint.path
    groups = sorted(p.stem for p in path.glob("*.safetensors") if p.stem == "model" or p.stem.startswith(POWER))

    def loader(group: str) -> Loader:
        def read() -> ScoreModel:
            model = load(run, device=device)
            load_weights(model, read_checkpoint(path, (group,)).tensors[group], str(path))
            return model

        return read

    names = {group: "no average" if group == "model" else f"width {group[len(POWER) :]}" for group in groups}
    return {names[group]: loader(group) for group in groups} or None


@torch.no_grad()
def denoising_losses(model: ScoreModel, data: Tensor, levels: int = 8, seed: int = 0) -> tuple[list[float], Tensor]:
    """Log-SNR of the levels, and the mean squared error of the noise of each item there, (N, levels); noise is of the seed.

    Main arguments:
        data: held-out items (N, *), in the model's range. levels: how many, even in log-SNR.
    """
    draws, times = torch.Generator().manual_seed(seed), noise_levels(model, levels)
    rows = []
    for t in times:
        _, noise, own = noised(model, data, t, draws)
        rows.append(torch.square(noise - own).mean(1))
    return [float(model.sde.log_snr(t)) for t in times], torch.stack(rows, 1)


def averages(case: Case) -> Chapter:
    """Whether another average of the run than the one that `load` takes predicts noise better."""
    assert case.data is not None
    assert case.others is not None
    at, own = denoising_losses(case.model, case.data, seed=case.seed)
    # A level counts as what it has to gain: its loss relative to that of the average in use.
    level = own.mean(0)
    changes: dict[str, list[Estimate]] = {}
    whole: dict[str, Estimate] = {}
    for name, read in case.others.items():
        other = (denoising_losses(read(), case.data, seed=case.seed)[1] - own) / level
        changes[name] = [mean_of(column) for column in other.T]
        whole[name] = mean_of(other.mean(1))
    best = min(whole, key=lambda name: whole[name].value)
    gain = -whole[best].value
    verdict = judge(gain, 0.01, 0.05, gain > SURE * whole[best].stderr)
    words = "No other average that the run keeps predicts the noise of held-out items better by 1 %."
    if verdict != "good":
        words = f"The weights of {best} predict the noise of held-out items {100 * gain:.1f} % better than the average in use."
    advice = "Take that average: train with a shorter ema where `no average` is better, or load another width by post_hoc_ema."
    return Chapter(
        "averages",
        "Is the average of the weights the right one?",
        verdict,
        words,
        "" if verdict == "good" else advice,
        f"Another one better by 1 % of the loss, mean over noise levels, at {SURE:g} standard errors: watch; by 5 %: act.",
        {"log_snr": at, "loss": level.tolist(), **{name: pair(e) for name, e in whole.items()}},
        {name: [(x, *pair(e)) for x, e in zip(at, row, strict=True)] for name, row in changes.items()},
        ("log-SNR", "loss, relative to the average in use"),
    )
