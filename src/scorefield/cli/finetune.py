"""scorefield finetune."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from scorefield.cli.options import COUNT, Batches, Name, OfRun, Result, Unset, open_run
from scorefield.errors import InputError, ScorefieldError

if TYPE_CHECKING:
    from scorefield.reward.methods import Method


@dataclass(frozen=True, kw_only=True)
class Options(Batches, OfRun):
    """Tune a run by a reward of your own, towards p(x) e^(reward(x) / temperature); FILE.py is run, so it must be yours.

    The function takes samples (B, channels, height, width) in the units of the model and returns one number each, (B,).
    The same command again goes on where the last one ended. Sample the result with --sampler ddim:eta=1.

    Example: scorefield finetune digits --reward ink.py:less --out runs/light --temperature 0.05
    """

    reward: Annotated[str, Name("FILE.py:FUNCTION")]
    """The reward: a Python file and the name of a function in it."""
    out: Annotated[str, Name("FOLDER")]
    """Folder of the tuned run."""
    temperature: float = 1.0
    """Lambda, in the units of the reward; where it is large, samples stay near those of the run."""
    how: Literal["adjoint", "policy", "scores", "direct"] = "adjoint"
    """Adjoint matching or direct back-propagation differentiate the reward; policy gradients in steps or in time do not."""
    steps: Annotated[int, COUNT] = 300
    """Updates."""
    lr: float = 1e-4
    """Learning rate."""
    chain_steps: Annotated[int, COUNT] = 30
    """Steps of the sampler that is tuned, DDIM with eta=1."""
    learn_from: Annotated[int | None, Unset("INT"), COUNT] = None
    """Steps of each path that an update learns from, to need less memory; all unless given."""
    label: Annotated[int | None, Unset("INT")] = None
    """Class of all samples, where the run has classes."""
    checkpoint_every: Annotated[int, COUNT] = 100
    """Steps between checkpoints."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.cli.options import pick_device
    from scorefield.reward import finetune

    reward = read_function(options.reward)
    info, model = open_run(options.run, options.device)
    if Path(options.out).resolve() == info.path.resolve():
        raise InputError(f"--out {options.out} is the run that is to be tuned; choose another folder")
    if info.scale is not None:
        raise InputError(f"{options.run} is of a table, whose units a tuned run would lose; use sf.reward.finetune")
    tuned = finetune(
        model,
        reward,
        _method(options),
        temperature=options.temperature,
        out=options.out,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        lr=options.lr,
        chain_steps=options.chain_steps,
        cond={} if options.label is None else {"label": options.label},
        device=pick_device(options.device),
        checkpoint_every=options.checkpoint_every,
        progress=None if not options.json else False,
    )
    values: dict[str, Any] = {"out": options.out, "step": tuned.step, "finished": tuned.step >= tuned.steps}
    values |= {"before": asdict(tuned.before), "after": asdict(tuned.after)}
    text = f"{options.out}: step {tuned.step} of {tuned.steps}\nbefore: {tuned.before}\nafter:  {tuned.after}"
    return Result(text, values)


def read_function(place: str) -> Callable[..., Any]:
    """The function of a place FILE.py:FUNCTION; the file is run.

    Raises:
        InputError: no such file or function, or a file that fails; and from the function where it fails.
    """
    path, colon, name = place.rpartition(":")
    if not colon or not name.isidentifier():
        raise InputError(f"--reward {place} names no function; write FILE.py:FUNCTION")
    if not Path(path).is_file():
        raise InputError(f"--reward {place}: there is no file {path}; check the path")
    spec = importlib.util.spec_from_file_location("scorefield_reward_file", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--reward {place}: {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"--reward {place}: {path} fails with {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        known = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise InputError(f"--reward {place}: {path} has no function {name}; it has {', '.join(known) or 'none'}")
    return _blamed(found, place)


def _blamed(function: Callable[..., Any], place: str) -> Callable[..., Any]:
    """The function, whose errors are told as those of the reader's file."""
    from torch import OutOfMemoryError

    @functools.wraps(function, updated=())
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except (ScorefieldError, MemoryError, OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"--reward {place} fails with {type(error).__name__}: {error}; --debug shows where"
            ) from error

    return call


def _method(options: Options) -> Method:
    from scorefield.reward import AdjointMatching, DirectBackpropagation, PolicyGradient, ScoresAsActions

    if options.how == "direct":
        return DirectBackpropagation(last=options.learn_from)
    kinds = {"adjoint": AdjointMatching, "policy": PolicyGradient, "scores": ScoresAsActions}
    made: Method = kinds[options.how](steps=options.learn_from)
    return made
