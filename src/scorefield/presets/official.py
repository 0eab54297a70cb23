"""Reading an official configuration: nested mappings of untyped values, checked field by field against a section's type."""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scorefield.errors import InputError, cannot_read

_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a word"),
    tuple: ((list, tuple), "a list"),
}


def read_json(path: str | Path) -> Mapping[str, Any]:
    """The configuration in a JSON file.

    Raises:
        InputError: the file cannot be read, or holds something else than a mapping.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise cannot_read(path, error) from error
    except ValueError as error:
        raise InputError(f"cannot read {path} as a configuration: {error}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"cannot read {path} as a configuration: expected a mapping, got {type(content).__name__}")
    return content


def from_official(config: Mapping[str, Any], sections: Mapping[str, type]) -> dict[str, Any]:
    """One value for each section, of the given type.

    Raises:
        ValueError: a needed section or field is missing, or a value does not fit; the message names it.
    """
    made = {}
    for section, kind in sections.items():
        given, needed = config.get(section), getattr(kind, "needed", ())
        if given is None and needed:
            raise ValueError(f"the configuration lacks the section {section!r}; an official configuration has it")
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(
                f"the section {section!r} of the configuration must be a mapping, not {type(given).__name__}"
            )
        made[section] = _section(section, kind, needed, given) if given is not None else kind()
    return made


def _section(section: str, kind: type, needed: Sequence[str], given: Mapping[str, Any]) -> Any:
    missing = [name for name in needed if given.get(name) is None]
    if missing:
        raise ValueError(f"the configuration lacks {section}.{missing[0]}, which an official one has")
    hints = get_type_hints(kind)
    values = {}
    for field in fields(kind):
        optional = type(None) in get_args(hints[field.name])
        if given.get(field.name) is not None:
            values[field.name] = _value(f"{section}.{field.name}", hints[field.name], given[field.name])
        elif optional:
            values[field.name] = None
    return kind(**values)


def _value(name: str, hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        allowed = {
            str(word).lower(): word for word in get_args(hint)
        }  # the official code reads most words in either case
        if not isinstance(value, str) or value.lower() not in allowed:
            raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(allowed.values())}")
        return allowed[value.lower()]
    accepted, said = _KINDS[get_origin(hint) or hint]
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{name}={value!r}: expected {said}")
    return _frozen(value) if isinstance(value, list | tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value
