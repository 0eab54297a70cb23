"""Conditions with one row for each sample."""

from __future__ import annotations

from torch import Tensor


def check_rows(index: Tensor, rows: int, what: str) -> None:
    """Refuse to take rows that a condition does not have."""
    if index.numel() and int(index.max()) >= rows:
        raise ValueError(f"{what} has {rows} rows but more samples are asked for; give one row, or one for each sample")
