"""A model made from another model, all of whose views go through one function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, TypeAlias, cast

from torch import Tensor

from scorefield.model import ScoreModel
from scorefield.sde import Time

View: TypeAlias = Literal["denoise", "noise", "score", "velocity"]


class Wrapped(ScoreModel, ABC):
    """What guidance returns: a model that reads another one. A subclass gives `see`, and `rows` if it holds rows."""

    def __init__(self, base: ScoreModel) -> None:
        super().__init__(base, base.sde, "score", shape=base.shape)
        self.batch = base.batch

    @property
    def base(self) -> ScoreModel:
        """The model underneath."""
        return cast(ScoreModel, self.net)

    @abstractmethod
    def see(self, view: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """One of the four views of the guided model, like x."""

    @abstractmethod
    def rows(self, index: Tensor) -> ScoreModel: ...

    def denoise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        return self.see("denoise", x, t, cond)

    def noise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        return self.see("noise", x, t, cond)

    def score(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        return self.see("score", x, t, cond)

    def velocity(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        return self.see("velocity", x, t, cond)


def view_of(model: ScoreModel, view: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
    """The view of that name."""
    match view:
        case "denoise":
            return model.denoise(x, t, **cond)
        case "noise":
            return model.noise(x, t, **cond)
        case "score":
            return model.score(x, t, **cond)
        case "velocity":
            return model.velocity(x, t, **cond)


def check_rows(index: Tensor, rows: int, what: str) -> None:
    """Refuse to take rows that a condition does not have."""
    if index.numel() and int(index.max()) >= rows:
        raise ValueError(f"{what} has {rows} rows but more samples are asked for; give one row, or one for each sample")
