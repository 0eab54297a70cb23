"""The door: a model, a reward and a method, run by the training loop."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from scorefield.data.dataset import Dataset
from scorefield.differentiate import differentiation
from scorefield.errors import InputError
from scorefield.files import check_folder
from scorefield.flowmap import FlowMap
from scorefield.inputs import whole
from scorefield.model import ScoreModel, weights_hash
from scorefield.nn.precision import copied
from scorefield.progress import say
from scorefield.randomness import FromGenerator
from scorefield.reward.methods import AdjointMatching, Method, Rollout
from scorefield.reward.paths import Chain, Paths, Reward, follow, rewarded
from scorefield.sde import SDE
from scorefield.solve.integrate import Field, Solver
from scorefield.times import GridFn, GridName
from scorefield.training.config import Options, TrainConfig
from scorefield.training.monitor import Moment
from scorefield.training.trainer import train

FIGURES = "reward.jsonl"
"""File of a run with the figures along the way."""


@dataclass(frozen=True)
class Figures:
    """What a chain earns and what it costs, by `samples` paths.

    Attributes:
        reward, stderr: mean reward and its standard error.
        kl, kl_stderr: KL of its paths to those of the base in nats (Girsanov); at least that of the samples.
        ess: effective sample size of the weights e^(r / temperature) dP_base / dP_tuned, as a share of the samples: near 1
            where the chain is the base tilted by the reward, near 0 where the weights say nothing.
    """

    reward: float
    stderr: float
    kl: float
    kl_stderr: float
    ess: float
    samples: int

    def __str__(self) -> str:
        return (
            f"reward {self.reward:.4g} +- {self.stderr:.2g}, KL to the base {self.kl:.4g} +- {self.kl_stderr:.2g} nats, "
            f"effective sample size {100 * self.ess:.0f} % of {self.samples}"
        )


@dataclass(frozen=True)
class Tuned:
    """The outcome of `finetune`.

    Attributes:
        model: a copy with the tuned weights, in eval mode. path: its folder, None where none was asked for.
        step: updates made, of `steps`. before, after: figures of the base and of the tuned chain, on the same noise.
    """

    model: ScoreModel
    path: Path | None
    step: int
    steps: int
    before: Figures
    after: Figures

    def __repr__(self) -> str:
        return f"Tuned(step {self.step:,} of {self.steps:,}: {self.after}; before: reward {self.before.reward:.4g})"


@differentiation()
def finetune(
    model: ScoreModel,
    reward: Reward,
    how: Method | None = None,
    *,
    temperature: float = 1.0,
    out: str | Path | None = None,
    solver: Solver | None = None,
    chain_steps: int = 30,
    grid: GridName | GridFn | Tensor | None = None,
    cond: dict[str, Any] | None = None,
    samples: int = 256,
    device: str | None = None,
    progress: bool | None = None,
    **options: Unpack[Options],
) -> Tuned:
    """Tune a model so that its chain of samples follows p(x) e^(r(x) / temperature), p being its own chain as it was.

    It runs in the loop of `train`: with `out`, the same call with the same base goes on where the last one ended, and the
    folder is a run like any other. The reward is that of the state at `sde.t_min`, before the final denoising of `sample`.

    Main arguments:
        model: its weights are trained in place; the averaged ones are in the result.
        reward: x (B, *) in the model's units -> (B,). Nothing scales or clips it.
        how: `AdjointMatching()` by default, `PolicyGradient()`, `ScoresAsActions()` or `DirectBackpropagation()`.
        temperature: lambda, in the units of the reward: where it is large, samples stay near the base.
        steps, batch_size, seed: updates (300), paths in each (64), and what decides all random numbers (0).
        out: folder for the run and its figures, reward.jsonl.

    Other arguments:
        solver, chain_steps, grid: the chain, `DDIM(eta=1.0)` in 30 steps by default; sample with the same.
        cond: condition of the network, one for all samples, such as {"label": 3}.
        samples: paths that the figures before and after are measured on.
        device, progress, options: as in `train`; by default lr=1e-3 without warm-up and ema=0.9.

    Raises:
        InputError: a reward of the wrong shape, NaN or constant, or without a gradient where the method needs one; a solver
            without Gaussian steps; another option out of range.
        CheckpointError: the folder belongs to another base, reward temperature, method or chain.
    """
    _check_temperature(temperature)
    if not isinstance(model.sde, SDE) or isinstance(model, FlowMap):
        raise InputError(f"model is a {type(model).__name__}, which has no score; give a ScoreModel")
    if model.shape is None:
        raise InputError("the model does not know its shape; set model.shape, or give shape= where it is made")
    how = AdjointMatching() if how is None else how
    if not callable(reward):
        raise InputError(f"reward is a {type(reward).__name__}; give a function of samples (B, *) that returns (B,)")
    if not hasattr(how, "loss"):
        raise InputError(f"how={how!r}: give a method, such as sf.reward.AdjointMatching()")
    config = TrainConfig(steps=300, batch_size=64, ema=0.9, report=False, trackers=(), keep_best=False)
    config = config.updated(**(Options(lr=1e-3, warmup=0) | options)).updated(reduce="sum", explosion=0.0)
    if config.accumulate > 1 and getattr(how, "inner", 1) > 1:
        raise InputError(
            "accumulate and inner cannot both be above 1: the parts of a batch would be taken for each other"
        )
    if out is not None:
        check_folder(out)
    chain = Chain.of(model, solver, chain_steps, grid)
    base = copied(model).eval().requires_grad_(False)
    game = _Game(base, chain, reward, how, float(temperature), dict(cond or {}))
    before = game.measure(base, whole(samples, "samples", "the number of paths"), config.seed, vary=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out)
        teller = _Teller(game, config.log_every, progress, folder)
        run = train(
            model,
            game.placeholder(),
            out=folder,
            config=config,
            loss=game,
            callbacks=[teller],
            device=device,
            progress=False if progress is None else progress,
        )
    after = game.measure(run.model, samples, config.seed)
    if progress is not False:
        say(f"tuned: {after}; before: reward {before.reward:.4g} +- {before.stderr:.2g}")
    return Tuned(run.model, None if out is None else run.path, run.step, run.steps, before, after)


def measure(
    model: ScoreModel,
    base: ScoreModel,
    reward: Reward,
    chain: Chain | None = None,
    *,
    temperature: float = 1.0,
    n: int = 256,
    seed: int = 0,
    cond: dict[str, Any] | None = None,
) -> Figures:
    """Reward, KL to the base and effective sample size of a chain, `Chain.of(model)` unless given, on n paths.

    Other arguments: as in `finetune`.

    Raises:
        InputError: as in `finetune`.
    """
    _check_temperature(temperature)
    steps = Chain.of(model) if chain is None else chain
    game = _Game(base, steps, reward, AdjointMatching(), float(temperature), dict(cond or {}))
    return game.measure(model, whole(n, "n", "the number of samples"), seed)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature}: lambda of p e^(r / lambda) is a positive number")


class _Game:
    """The loss as `train` calls it; a function of its random numbers, which the loop seeds at every step."""

    def __init__(
        self,
        base: ScoreModel,
        chain: Chain,
        reward: Reward,
        how: Method,
        temperature: float,
        cond: dict[str, Any],
    ) -> None:
        self.base, self.chain, self.reward, self.how = base, chain, reward, how
        self.temperature, self.cond = temperature, cond
        self.memory: dict[str, Any] = {}
        self.last: Figures | None = None

    def __call__(self, model: ScoreModel, x0: Tensor, **_: Any) -> Tensor:
        """Twice the loss (B,): the loop halves what it sums."""
        draws = torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))
        with _evaluating(model):
            rollout = self._rollout(model, len(x0), draws)
            each, paths, value = self.how.loss(rollout)
        self.last = figures(paths, value, self.temperature)
        return 2 * each

    def _rollout(self, model: ScoreModel, n: int, draws: torch.Generator) -> Rollout:
        noise = FromGenerator(n, draws)
        device, dtype = model.device, model.dtype
        self.base.to(device)
        start = model.sde.prior((n, *(self.base.shape or ()))).draw(noise, dtype, device)
        tuned, base = (Field.of(m, self.cond, n) for m in (model, self.base))
        return Rollout(self.chain, tuned, base, self.reward, self.temperature, start, noise, draws, self.memory)

    @torch.no_grad()
    def measure(self, model: ScoreModel, n: int, seed: int, vary: bool = False) -> Figures:
        """Figures on n paths of their own seed; with `vary`, a reward that is the same for all is refused."""
        with _evaluating(model):
            rollout = self._rollout(model, n, torch.Generator().manual_seed(seed + 1))
            paths = follow(self.chain, rollout.tuned, rollout.base, rollout.start, rollout.noise)
            value = rewarded(self.reward, paths.states[-1]).detach()
        if vary and bool((value == value[0]).all()):
            raise InputError(
                f"the reward is {float(value[0]):.6g} for each of {n} samples of the base: there is nothing to learn; "
                "give one that tells samples apart"
            )
        return figures(paths, value, self.temperature)

    def placeholder(self) -> Dataset:
        """A data set of one item, which no loss reads: what tells a run of another base, method or chain apart."""
        about = f"{weights_hash(self.base)} {self.how!r} {self.temperature!r} {self.chain.solver!r} {self.cond!r}"
        mark = hash_of(f"{about} {self.chain.times.tolist()}")
        item = torch.randn(1, *(self.base.shape or ()), generator=torch.Generator().manual_seed(mark), device="cpu")

        def read(indices: Any) -> Tensor:
            return item.expand(len(indices), *item.shape[1:])

        name = f"reward {getattr(self.reward, '__name__', type(self.reward).__name__)} of base {mark:x}"
        return Dataset(name, tuple(item.shape[1:]), 1, read, levels=self.base.data_levels or None)


def hash_of(text: str) -> int:
    """63 bits of a hash of a text, the same in every process."""
    import hashlib

    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def figures(paths: Paths, value: Tensor, temperature: float) -> Figures:
    """The figures of paths and their rewards (B,)."""
    n, kl = len(value), paths.step_kl.sum(0)
    weights = torch.softmax(value / temperature + paths.log_ratio, 0)
    spread = (float(v.std()) / math.sqrt(n) if n > 1 else math.nan for v in (value, kl))
    stderr, kl_stderr = spread
    ess = float(1 / (n * torch.square(weights).sum()))
    return Figures(float(value.mean()), stderr, float(kl.mean()), kl_stderr, ess, n)


class _Teller:
    """Tells the figures of the last batch, on the terminal and in the run's folder."""

    def __init__(self, game: _Game, every: int, progress: bool | None, folder: Path) -> None:
        self.game, self.every, self.progress, self.folder = game, every, progress, folder

    def __call__(self, moment: Moment) -> None:
        last = self.game.last
        if last is None or (moment.step % self.every and moment.step != moment.steps):
            return
        if self.progress is not False:
            say(f"step {moment.step:,} of {moment.steps:,}: {last}")
        with open(self.folder / FIGURES, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": moment.step} | asdict(last)) + "\n")


@contextlib.contextmanager
def _evaluating(model: ScoreModel) -> Iterator[None]:
    """Eval mode for a while: dropout would be a difference between the policy and itself."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
