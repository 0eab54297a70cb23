"""Objects written as words, NAME or NAME:OPTION=VALUE,...: names and options are read off the classes themselves."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import scorefield as sf
from scorefield.errors import InputError, closest

if TYPE_CHECKING:
    from scorefield.sde import GaussianSDE
    from scorefield.solve.integrate import Solver
    from scorefield.times import Proposal

T = TypeVar("T")
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def spelt(cls: type) -> str:
    """A class name as a word: EulerMaruyama is euler-maruyama, DPMSolver is dpm-solver."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()


def pick(option: str, word: str, known: Mapping[str, T]) -> T:
    """What is known under a word; case and hyphens do not matter, and a beginning will do where it means one thing.

    Raises:
        InputError: nothing is, in one line that names the option.
    """
    plain = _plain(word)
    exact = [name for name in known if _plain(name) == plain]
    begun = sorted((name for name in known if plain and _plain(name).startswith(plain)), key=len)
    if exact or (begun and all(_plain(name).startswith(_plain(begun[0])) for name in begun)):
        return known[(exact or begun)[0]]
    raise InputError(f"{option}={word!r} is unknown{closest(word, begun or known)}")


def solvers() -> dict[str, type[Solver]]:
    """The solvers of `scorefield.solve` that sample by themselves as they come, by name."""
    found = {spelt(cls): cls for cls in _all_solvers().values() if cls.order != 0}
    return dict(sorted(found.items()))


def read_solver(word: str | None, sde: GaussianSDE | None = None, option: str = "--sampler") -> Solver | None:
    """The solver that a word names; None, which is the library's choice, where none is named.

    Raises:
        InputError: an unknown name, option or value; "list" says which there are.
    """
    if word is None or _plain(word) == "fitted":
        return None
    if word == "list":
        raise InputError(f"{option} takes fitted, {', '.join(map(_usage, solvers().values()))}")
    name, _, rest = word.partition(":")
    try:
        made: Solver = _configured(pick(option, name, solvers())(), rest)
    except InputError as error:
        raise error if str(error).startswith("--") else InputError(f"{option}={word!r}: {error}") from error
    except ValueError as error:
        raise InputError(f"{option}={word!r}: {error}") from error
    return _paper_snr(made, sde) if "snr" not in rest else made


def draws_noise(solver: Solver | None) -> bool:
    """Whether a solver draws noise of its own, so that the first noise does not decide all; found by trying."""
    import torch

    class Drawn(Exception):
        pass

    def refuse(*args: Any, **more: Any) -> Any:
        raise Drawn

    if solver is None:
        return False
    model = sf.GaussianMixture(torch.zeros(1, 1), torch.ones(1, 1, 1), None, sf.VP())
    try:
        sf.sample(model, 1, solver, steps=2, x_init=torch.zeros(1, 1), noise=refuse)
    except Drawn:
        return True
    return False


def operators() -> dict[str, Any]:
    """The measurements of `scorefield.inverse` that a word can name, by name."""
    classes = [c for c in vars(sf.inverse).values() if isinstance(c, type) and "from_word" in vars(c)]
    return {spelt(cls): cls for cls in classes}


def read_times(word: str) -> Proposal:
    """The proposal for training times that a word names; numbers after a colon are its first arguments.

    Raises:
        ValueError: an unknown name or unreadable numbers.
    """
    name, _, numbers = word.partition(":")
    found = {key: cls for key, cls in _proposals().items() if _plain(key) == _plain(name)}
    if not found:
        raise ValueError(f"unknown; choose {', '.join(_proposals())}, such as log_normal:MEAN,STD")
    values = [float(n) for n in numbers.split(",")] if numbers else []
    cls = next(iter(found.values()))
    if len(values) > len(fields(cls)):
        raise ValueError(f"{word!r} has too many numbers")
    proposal: Proposal = cls(*values)
    return proposal


def write_times(value: Any) -> str:
    """The word for a proposal: its name, and the arguments that have no default."""
    name = next((key for key, cls in _proposals().items() if type(value) is cls), type(value).__name__)
    given = [f"{getattr(value, f.name)}" for f in fields(value) if f.name in ("mean", "std")]
    return f"{name}:{','.join(given)}" if given else name


def _proposals() -> dict[str, Any]:
    ours: list[Any] = [c for name, c in vars(sf.times).items() if name.endswith("Times") and is_dataclass(c)]
    simple = [c for c in ours if all(_number(hint) for hint in _hints(c).values())]
    return {spelt(cls).removesuffix("-times").replace("-", "_"): cls for cls in simple}


def _number(hint: Any) -> bool:
    return set(get_args(hint) or (hint,)) <= {int, float, type(None)}


def _all_solvers() -> dict[str, type[Solver]]:
    ours = [c for c in vars(sf.solve).values() if isinstance(c, type) and issubclass(c, sf.solve.Solver)]
    return {spelt(c): c for c in ours if not getattr(c, "__abstractmethods__", ()) and not _needed(c)}


def _needed(cls: type) -> list[str]:
    given = fields(cls) if is_dataclass(cls) else ()
    return [f.name for f in given if f.init and f.default is MISSING and f.default_factory is MISSING]


def _configured(made: Any, rest: str) -> Any:
    """The object with OPTION=VALUE,... in place of its own."""
    for part in [p for p in rest.split(",") if p]:
        name, equals, text = part.partition("=")
        if not equals:
            raise InputError(f"{part!r} cannot be read; expected OPTION=VALUE{_offer(made)}")
        changed = _changed(made, name.strip().replace("-", "_"), text.strip())
        if changed is None:
            raise InputError(f"option {name!r} is unknown{_offer(made)}")
        made = changed
    return made


def _changed(made: Any, name: str, text: str) -> Any:
    """The object with one option changed, its own or that of a part of it; None if there is none of that name."""
    options = _options(type(made))
    if name in options:
        return replace(made, **{name: _value(name, text, options[name])})
    for part in fields(made) if is_dataclass(made) else ():
        inner = getattr(made, part.name)
        if part.init and is_dataclass(inner) and (changed := _changed(inner, name, text)) is not None:
            return replace(made, **{part.name: changed})  # type: ignore[type-var]
    return None


def _options(cls: type) -> dict[str, Any]:
    """Names and types of the options of a class that a word can give."""
    hints = _hints(cls)
    given: tuple[Field[Any], ...] = fields(cls) if is_dataclass(cls) else ()
    return {f.name: hints[f.name] for f in given if f.init and f.repr and _readable(hints.get(f.name))}


def _hints(cls: type) -> dict[str, Any]:
    try:
        hints = get_type_hints(cls)
    except NameError:  # a type that is imported for type checkers alone
        return {}
    return {f.name: hints[f.name] for f in fields(cls)} if is_dataclass(cls) else hints


def _readable(hint: Any) -> bool:
    return (
        hint in (bool, int, float, str) or get_origin(hint) is Literal or _is_solver(hint) or _inner(hint) is not None
    )


def _inner(hint: Any) -> Any:
    """X of X | None, where a word can give an X."""
    if get_origin(hint) not in (Union, types.UnionType):
        return None
    rest = [a for a in get_args(hint) if a is not type(None)]
    return rest[0] if len(rest) == 1 and _readable(rest[0]) else None


def _is_solver(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, sf.solve.Solver)


def _value(name: str, text: str, hint: Any) -> Any:
    if (inner := _inner(hint)) is not None:
        return None if text.lower() == "none" else _value(name, text, inner)
    if _is_solver(hint):
        return pick(name, text, _all_solvers())()
    if get_origin(hint) is Literal:
        return pick(name, text, {str(a): a for a in get_args(hint)})
    if hint is bool:
        return pick(name, text, TRUTH)
    try:
        return hint(text)
    except ValueError:
        kind = {"int": "a whole number", "float": "a number"}[hint.__name__]
        raise InputError(f"{name}={text!r} cannot be read; expected {kind}") from None


def _offer(made: Any) -> str:
    names = list(_options(type(made)))
    for part in fields(made) if is_dataclass(made) else ():
        inner = _options(type(getattr(made, part.name)))
        names += [name for name in inner if name not in names]
    return f"; it takes {', '.join(names)}" if names else "; it takes none"


def _usage(cls: type[Solver]) -> str:
    names = list(_options(cls))
    return spelt(cls) + (f" ({', '.join(names)})" if names else "")


def _plain(word: str) -> str:
    return re.sub(r"[-_ ]", "", word).lower()


def _paper_snr(solver: Any, sde: GaussianSDE | None) -> Any:
    """The signal-to-noise ratio of Song et al. 2021, Table 5, which depends on the SDE: 0.16 for VE, 0.01 for VP."""
    if sde is None or isinstance(sde, sf.VE) or "snr" not in _offer(solver):
        return solver
    return _changed(solver, "snr", "0.01")
