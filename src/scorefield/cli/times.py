"""Proposals for training times as words: uniform, log_snr, log_normal:-1.2,1.2."""

from __future__ import annotations

from typing import Any

from scorefield.times import LogNormalTimes, LogSNRTimes, Proposal, UniformTimes

NAMES: dict[str, Any] = {"uniform": UniformTimes, "log_snr": LogSNRTimes, "log_normal": LogNormalTimes}


def read_times(word: str) -> Proposal:
    """The proposal that a word stands for; numbers after a colon are its first arguments.

    Raises:
        ValueError: an unknown name or unreadable numbers.
    """
    name, _, numbers = word.partition(":")
    if name not in NAMES:
        raise ValueError(f"unknown; choose {', '.join(NAMES)}, or log_normal:MEAN,STD")
    arguments = {"log_normal": ("mean", "std")}.get(name, ("t_min",))
    values = [float(n) for n in numbers.split(",")] if numbers else []
    proposal: Proposal = NAMES[name](**dict(zip(arguments, values, strict=False)))
    return proposal


def write_times(value: Any) -> str:
    """The word for a proposal."""
    if isinstance(value, LogNormalTimes):
        return f"log_normal:{value.mean},{value.std}"
    return next((name for name, cls in NAMES.items() if isinstance(value, cls)), type(value).__name__)
