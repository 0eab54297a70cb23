"""Objects written as words, NAME or NAME:OPTION=VALUE,...: names and options are read off the classes themselves."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import scorefield as sf
from scorefield.errors import Answered, InputError, closest

if TYPE_CHECKING:
    from scorefield.solve.integrate import Solver
    from scorefield.times import Proposal

T = TypeVar("T")
PAPER_SNR = "0.01"
"""Signal-to-noise ratio of correctors under VP and sub-VP (Song et al. 2021, Table 5); that of VE is their default."""
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
    return dict(sorted((spelt(cls), cls) for cls in _all_solvers().values() if cls.order != 0))


def jump_solvers() -> dict[str, type[Solver]]:
    """The solvers of `scorefield.discrete`, by name."""
    ours = [c for c in vars(sf.discrete).values() if isinstance(c, type) and issubclass(c, sf.solve.Solver)]
    return dict(sorted((spelt(cls), cls) for cls in ours if cls.order != 0))


def read_solver(word: str | None, sde: Any = None, option: str = "--sampler") -> Solver | None:
    """The solver that a word names; None, which is the library's choice, where none is named.

    Raises:
        InputError: an unknown name, option or value. Answered: "list" says which there are.
    """
    if word is None:
        return None
    known = jump_solvers() if isinstance(sde, sf.discrete.JumpProcess) else solvers()
    if word == "list":
        raise Answered("\n".join(map(_usage, known.values())))
    name, _, rest = word.partition(":")
    cls = pick(option, name, known)
    try:
        given = _pairs(rest, cls)
        if isinstance(sde, sf.VP | sf.SubVP) and "snr" in _offered(cls):
            given.setdefault("snr", PAPER_SNR)
        made: Solver = _made(cls, given)
    except ValueError as error:
        raise InputError(f"{option}={word!r}: {error}") from error
    return made


def solver_code(word: str, sde: Any = None) -> str:
    """The Python that makes the solver which `read_solver` reads from a word.

    Raises:
        InputError: as `read_solver`.
    """
    read_solver(word, sde)
    name, _, rest = word.partition(":")
    cls = pick("--sampler", name, solvers())
    given = _pairs(rest, cls)
    if isinstance(sde, sf.VP | sf.SubVP) and "snr" in _offered(cls):
        given.setdefault("snr", PAPER_SNR)
    return _code(cls, given)


def usage(word: str) -> str:
    """The options that the solver of a name takes, as `option=value` would set them; empty where it takes none."""
    return ", ".join(_offered(pick("--sampler", word, solvers())))


def check_solver(word: str | None) -> None:
    """Refuse a word that names no solver of any kind of run, before the run is opened.

    Raises:
        InputError: as `read_solver`.
    """
    name = (word or "").partition(":")[0]
    if name != "list" and name not in jump_solvers():
        read_solver(word)


def draws_noise(solver: Solver | None) -> bool:
    """Whether a solver draws noise of its own, so that the first noise does not decide all; found by trying."""
    import torch

    class Drawn(Exception):
        pass

    def refuse(*args: Any, **more: Any) -> Any:
        raise Drawn

    if solver is None or solver.flow:
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
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def _pairs(rest: str, cls: type) -> dict[str, str]:
    """OPTION=VALUE,... as a table."""
    found = {}
    for part in [p for p in rest.split(",") if p]:
        name, equals, text = part.partition("=")
        if not equals:
            raise InputError(f"{part!r} cannot be read; expected OPTION=VALUE{_offer(cls)}")
        found[name.strip().replace("-", "_")] = text.strip()
    return found


def _made(cls: type, given: Mapping[str, str]) -> Any:
    """An object with these options, its own ones or those of a part of it."""
    own = _options(cls)
    values = {name: _value(name, text, own[name]) for name, text in given.items() if name in own}
    rest = {name: text for name, text in given.items() if name not in own}
    for part in [name for name, hint in own.items() if _is_solver(hint)]:
        kind = type(values.get(part) or getattr(cls(), part))
        inner = {name: rest.pop(name) for name in [*rest] if name in _options(kind)}
        values[part] = _made(kind, inner)
    if rest:
        raise InputError(f"option {min(rest)!r} is unknown{_offer(cls)}")
    return cls(**values)


def _code(cls: type, given: Mapping[str, str]) -> str:
    """What `_made` makes, as Python."""
    own = _options(cls)
    parts = [name for name, hint in own.items() if _is_solver(hint)]
    written = [f"{name}={_value(name, text, own[name])!r}" for name, text in given.items() if name in {*own} - {*parts}]
    for part in parts:
        kind = type(_value(part, given[part], own[part]) if part in given else getattr(cls(), part))
        inner = {name: text for name, text in given.items() if name not in own and name in _options(kind)}
        if inner or part in given:
            written.append(f"{part}={_code(kind, inner)}")
    return f"sf.solve.{cls.__name__}({', '.join(written)})"


def _options(cls: type) -> dict[str, Any]:
    """Names and types of the arguments of a class that a word can give."""
    try:
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # a type that is imported for type checkers alone
        return {}
    names = inspect.signature(cls).parameters
    return {name: hints[name] for name in names if name in hints and _readable(hints[name])}


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


def _offered(cls: type) -> list[str]:
    """Options of a class and of its parts, as they come."""
    names = list(_options(cls))
    for part in [name for name, hint in _options(cls).items() if _is_solver(hint)]:
        names += [name for name in _options(type(getattr(cls(), part))) if name not in names]
    return names


def _offer(cls: type) -> str:
    return f"; it takes {', '.join(names)}" if (names := _offered(cls)) else "; it takes none"


def _usage(cls: type[Solver]) -> str:
    return spelt(cls) + (f" ({', '.join(names)})" if (names := _offered(cls)) else "")


def _plain(word: str) -> str:
    return re.sub(r"[-_ ]", "", word).lower()
