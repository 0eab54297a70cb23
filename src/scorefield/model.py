"""A network read through an SDE: four exact views of one prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from scorefield.sde import GaussianSDE, Time, batch_time, expand

Predict: TypeAlias = Literal["noise", "score", "data", "velocity", "edm"]
Clock: TypeAlias = "Literal['t', 'sigma', 'log_sigma'] | float | Callable[[Tensor], Tensor]"
Pair: TypeAlias = "tuple[Tensor, Tensor]"

PREDICTIONS: tuple[str, ...] = ("noise", "score", "data", "velocity", "edm")
CLOCKS: tuple[str, ...] = ("t", "sigma", "log_sigma")


class ScoreModel(nn.Module):
    r"""A network and an SDE, seen as denoiser, score, noise or velocity.

    Whatever the network was trained to predict, x_t = alpha x_0 + sigma eps ties the four views together exactly:
    score = -eps / sigma (Song et al. 2021, eq. 7), denoise = E[x_0 | x_t] = (x - sigma eps) / alpha (Tweedie),
    velocity = alpha' E[x_0 | x_t] + sigma' eps = f x - 1/2 g^2 score (eq. 13).

    Main arguments:
        net: called as net(x, t, **cond) with x (B, *) and t (B,) in the dtype of the network; returns a tensor like x.
        sde: the forward process the network was trained under.
        predict: what the network returns: "noise" (eps), "score", "data" (x_0), "velocity" (dx/dt of the probability
            flow) or "edm" (F of Karras et al. 2022, Table 1, whose input is x scaled to unit variance).

    Other arguments:
        shape: event shape, without the batch; needed only to sample without `shape=`.
        clock: what the network receives as t: "t", "sigma", "log_sigma" (1/4 log(sigma/alpha), the default of "edm"),
            a number that multiplies t, or a function of the float64 time.
        sigma_data: standard deviation of the data, used by "edm" alone.

    Raises:
        ValueError: `predict` or `clock` is not one of the names above.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: GaussianSDE,
        predict: Predict = "noise",
        *,
        shape: Sequence[int] | None = None,
        clock: Clock | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        if predict not in PREDICTIONS:
            raise ValueError(f"predict={predict!r} is unknown; choose one of {', '.join(PREDICTIONS)}")
        if isinstance(clock, str) and clock not in CLOCKS:
            raise ValueError(f"clock={clock!r} is unknown; choose one of {', '.join(CLOCKS)}, a number or a function")
        self.net = net
        self.sde = sde
        self.predict: str = predict
        self.shape: tuple[int, ...] | None = None if shape is None else tuple(shape)
        self.clock: Clock = clock if clock is not None else ("log_sigma" if predict == "edm" else "t")
        self.sigma_data = sigma_data
        self.batch: int | None = None
        """Number of samples, where the model holds a condition for each of them (see `rows`)."""
        self.tuned: dict[tuple[int, ...], Any] = {}
        """Solvers that `sample` has fitted to this model, by number of steps and event shape (`solve.tuned.cached`)."""

    @classmethod
    def from_score(
        cls, score: Callable[..., Tensor], sde: GaussianSDE, shape: Sequence[int] | None = None
    ) -> ScoreModel:
        """The model of a score function score(x, t, **cond) -> like x."""
        return cls(score, sde, "score", shape=shape)

    def denoise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """E[x_0 | x_t = x], like x; t is a float or (B,)."""
        return self._view(x, t, cond, lambda c: c.data)

    def noise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """E[eps | x_t = x], like x, of unit variance; t is a float or (B,)."""
        return self._view(x, t, cond, lambda c: c.noise)

    def score(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """grad log p_t(x), like x; t is a float or (B,)."""
        return self._view(x, t, cond, lambda c: _scaled(-1 / c.sigma, c.noise))

    def velocity(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """dx/dt of the probability flow (Song et al. 2021, eq. 13), like x; t is a float or (B,)."""
        return self._view(x, t, cond, _Views.velocity)

    def forward(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """The same as `score`, so that hooks and wrappers of torch find it."""
        return self.score(x, t, **cond)

    def rows(self, index: Tensor) -> ScoreModel:
        """The model for a subset of a batch; matters only to models that hold one condition per sample."""
        return self

    def __or__(self, guidance: Callable[[ScoreModel], ScoreModel]) -> ScoreModel:
        """`model | guidance` is again a model."""
        return guidance(self)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's parameters; torch's default where it has none."""
        tensor = self._any_tensor()
        return torch.get_default_dtype() if tensor is None else tensor.dtype

    @property
    def device(self) -> torch.device:
        """Device of the network's parameters; the CPU where it has none."""
        tensor = self._any_tensor()
        return torch.device("cpu") if tensor is None else tensor.device

    def _any_tensor(self) -> Tensor | None:
        tensors = (p for p in self.parameters() if p.is_floating_point())
        return next(tensors, next((b for b in self.buffers() if b.is_floating_point()), None))

    def _view(self, x: Tensor, t: Time, cond: dict[str, Any], choose: Callable[[_Views], Pair]) -> Tensor:
        time = batch_time(t, x)
        views = _Views(self, time)
        own, out = choose(views)
        scale = views.input_scale
        inner = x if scale is None else expand(scale, x) * x
        tensor = self._any_tensor()
        dtype = x.dtype if tensor is None else tensor.dtype
        clock = self._read_clock(time, views).to(dtype=dtype, device=x.device).expand(x.shape[0])
        y = self.net(inner.to(dtype), clock, **cond).to(x.dtype)
        if y.shape != x.shape:
            raise ValueError(f"the network returned shape {tuple(y.shape)} for an input of shape {tuple(x.shape)}")
        return (expand(out, x) * y).addcmul_(expand(own, x), x)  # in place: fresh memory costs more than the sum

    def _read_clock(self, t: Tensor, views: _Views) -> Tensor:
        if self.clock == "t":
            return t
        if self.clock == "sigma":
            return views.sigma
        if self.clock == "log_sigma":
            return -0.125 * self.sde.log_snr(t)
        return self.clock(t) if callable(self.clock) else t * float(self.clock)


class _Views:
    """Coefficients (a, b), float64 and of the shape of t, that give a view as a x + b net(x, t)."""

    def __init__(self, model: ScoreModel, t: Tensor) -> None:
        sde = model.sde
        self.input_scale: Tensor | None = None
        self._sde, self._t = sde, t
        self.alpha, self.sigma = alpha, sigma = sde.alpha(t), sde.sigma(t)
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        match model.predict:
            case "noise":
                self.data, self.noise = (1 / alpha, -sigma / alpha), (zero, one)
            case "score":
                self.data, self.noise = (1 / alpha, sigma**2 / alpha), (zero, -sigma)
            case "data":
                self.data, self.noise = (zero, one), (1 / sigma, -alpha / sigma)
            case "velocity":
                d_alpha, d_sigma = sde.derivatives(t)
                w = alpha * d_sigma - sigma * d_alpha
                self.data, self.noise = (d_sigma / w, -sigma / w), (-d_alpha / w, alpha / w)
            case _:
                # Karras et al. 2022, eq. 7, written for x = alpha x_0 + sigma eps, so that alpha = 0 is no special case.
                total = torch.sqrt(sigma**2 + (alpha * model.sigma_data) ** 2)
                self.input_scale = 1 / total
                self.data = (alpha * (model.sigma_data / total) ** 2, sigma * model.sigma_data / total)
                self.noise = (sigma / total**2, -alpha * model.sigma_data / total)

    def velocity(self) -> Pair:
        d_alpha, d_sigma = self._sde.derivatives(self._t)
        return tuple(d_alpha * data + d_sigma * noise for data, noise in zip(self.data, self.noise, strict=True))  # type: ignore[return-value]


def _scaled(c: Tensor, pair: Pair) -> Pair:
    return c * pair[0], c * pair[1]
