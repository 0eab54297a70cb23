"""A network read through an SDE: four exact views of one prediction."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from scorefield.coefficients import Time, batch_time, expand
from scorefield.dtypes import check_real
from scorefield.inputs import as_tensor, is_number, positive
from scorefield.prior import PriorLike
from scorefield.rows import agreed, held, take
from scorefield.sde import SDE, GaussianSDE
from scorefield.views import Predict, View, convert, view_coefficients

Clock: TypeAlias = "Literal['t', 'sigma', 'log_sigma'] | float | Callable[[Tensor], Tensor]"

PREDICTIONS: tuple[str, ...] = ("noise", "score", "data", "velocity", "edm")
ELSEWHERE = dict.fromkeys(("epsilon", "eps"), "did you mean 'noise'?")
ELSEWHERE |= dict.fromkeys(("sample", "x0", "x_0", "x_start"), "did you mean 'data'?")
ELSEWHERE["v_prediction"] = (
    "alpha eps - sigma x_0 is none of ours; sf.pretrained.from_diffusers(model, scheduler) reads such a network"
)
"""What other libraries call predictions, and what is right here."""
FARTHEST = 20.0
"""Largest 1/4 log(sigma/alpha) that a network is told: it is infinite where alpha or sigma is zero."""
CLOCKS: tuple[str, ...] = ("t", "sigma", "log_sigma")


def _usual(net: Callable[..., Tensor], sde: SDE) -> Predict:
    """What a network is taken to predict unless it is said."""
    if not isinstance(sde, GaussianSDE):
        return "noise" if hasattr(sde, "sigma") else "score"
    return "edm" if isinstance(net, nn.Module) and any(True for _ in net.parameters()) else "noise"


class ScoreModel(nn.Module):
    r"""A network and an SDE, seen as denoiser, score, noise or velocity.

    Whatever the network was trained to predict, x_t = alpha x_0 + sigma eps ties the four views together exactly:
    score = -eps / sigma (Song et al. 2021, eq. 7), denoise = E[x_0 | x_t] = (x - sigma eps) / alpha (Tweedie),
    velocity = alpha' E[x_0 | x_t] + sigma' eps = f x - 1/2 g^2 score (eq. 13).

    Main arguments:
        net: called as net(x, t, **cond) with x (B, *) and t (B,) in the dtype of the network; returns a tensor like x. One with
            an attribute `exact_time` that is True gets float32 times where its weights are in half precision.
        sde: the forward process the network was trained under.
        predict: what the network returns: "noise" (eps), "score", "data" (x_0), "velocity" (dx/dt of the probability
            flow) or "edm" (F of Karras et al. 2022, Table 1, whose input is x scaled to unit variance). By default "edm"
            for a network with weights, which learns best that way, and "noise" for any other function. Under a process
            without a Gaussian kernel it is "score", or, where that has a sigma(t), "noise", which then is -sigma score (over
            `ReflectedVE.gate` where there are walls).

    Other arguments:
        shape: event shape, without the batch; needed only to sample without `shape=`.
        clock: what the network receives as t: "t", "sigma", "log_sigma" (1/4 log(sigma/alpha), the default of "edm"),
            a number that multiplies t, or a function of the float64 time.
        sigma_data: standard deviation of the data, used by "edm" alone; unless given 0.5, until `train` measures it.

    Raises:
        ValueError: `predict` or `clock` is not one of the names above.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: SDE,
        predict: Predict | None = None,
        *,
        shape: Sequence[int] | None = None,
        clock: Clock | None = None,
        sigma_data: float | None = None,
    ) -> None:
        super().__init__()
        predict = _usual(net, sde) if predict is None else predict
        if predict not in PREDICTIONS:
            meant = f"choose one of {', '.join(PREDICTIONS)}"
            raise ValueError(f"predict={predict!r} is unknown; {ELSEWHERE.get(predict, meant)}")
        if getattr(net, "own_time", False) and (predict == "edm" or clock not in (None, "t")):
            raise ValueError(
                f"{type(net).__name__} reads x and t as they are; give predict='noise', 'score' or 'data', and no clock"
            )
        if not (clock is None or callable(clock) or clock in CLOCKS or is_number(clock)):
            raise ValueError(f"clock={clock!r} is unknown; choose one of {', '.join(CLOCKS)}, a number or a function")
        if sigma_data is not None:
            positive(sigma_data=sigma_data)
        self.net = net
        # Most of what asks for it needs alpha and sigma, and is refused for other processes before it does.
        self.sde: GaussianSDE = cast(GaussianSDE, sde)
        self.predict: str = predict
        self.shape: tuple[int, ...] | None = None if shape is None else tuple(shape)
        self.clock: Clock = clock if clock is not None else ("log_sigma" if predict == "edm" else "t")
        self.sigma_data = 0.5 if sigma_data is None else sigma_data
        self.sigma_known = sigma_data is not None
        """Whether `sigma_data` was given; training measures it on the data otherwise."""
        self.data_levels: int | None = None
        self.data_range: tuple[float, float] | None = None
        """Values of the data of training, 0 for real numbers, and the interval they fill (set by `train` and `load`)."""

    @classmethod
    def from_score(cls, score: Callable[..., Tensor], sde: SDE, shape: Sequence[int] | None = None) -> ScoreModel:
        """The model of a score function score(x, t, **cond) -> like x."""
        return cls(score, sde, "score", shape=shape)

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.parameters())
        net = getattr(self.net, "__name__", type(self.net).__name__)
        shape = f", shape={self.shape}" if self.shape is not None else ""
        return f"{type(self).__name__}({net}, {self.sde!r}, {self.predict!r}{shape}, {size:,} parameters)"

    def denoise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """E[x_0 | x_t = x], like x; t is a float or (B,)."""
        return self.view("denoise", as_tensor(x), t, cond)

    def noise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """E[eps | x_t = x], like x, of unit variance; t is a float or (B,)."""
        return self.view("noise", as_tensor(x), t, cond)

    def score(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """grad log p_t(x), like x; t is a float or (B,)."""
        return self.view("score", as_tensor(x), t, cond)

    def velocity(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """dx/dt of the probability flow (Song et al. 2021, eq. 13), like x; t is a float or (B,)."""
        return self.view("velocity", as_tensor(x), t, cond)

    def forward(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """The same as `score`, so that hooks and wrappers of torch find it."""
        return self.score(x, t, **cond)

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """The view of that name, like x; the one method behind the four, and the one that another kind of model overrides."""
        time = batch_time(t, x)
        if not isinstance(self.sde, GaussianSDE):
            return self._general_view(name, x, time, cond)
        alpha, sigma = self.sde.alpha(time), self.sde.sigma(time)
        own, out = view_coefficients(name, self.predict, self.sde, time, (alpha, sigma), self.sigma_data)
        inner = x
        if self.predict == "edm":
            inner = expand(1 / torch.sqrt(sigma**2 + (alpha * self.sigma_data) ** 2), x) * x
        y = self._call(inner, self._read_clock(time, sigma), cond)
        return (expand(out, x) * y).addcmul_(expand(own, x), x)  # in place: fresh memory costs more than the sum

    def _call(self, x: Tensor, clock: Tensor, cond: dict[str, Any]) -> Tensor:
        """What the network returns, in the dtype of x."""
        tensor = self._weight()
        dtype = x.dtype if tensor is None else tensor.dtype
        # Labels and phases need more digits than half precision has; networks that take them so say it.
        exact = dtype.itemsize < 4 and getattr(self.net, "exact_time", False)
        label = clock.to(dtype=torch.float32 if exact else dtype, device=x.device).expand(x.shape[0])
        try:
            y = self.net(x.to(dtype), label, **cond)
        except TypeError as error:
            refused = _refused(self.net, x, label, cond)
            raise (error if refused is None else ValueError(refused)) from error
        except RuntimeError as error:
            if not _MISFIT.search(str(error)):
                raise
            raise ValueError(
                f"the network {_call_of(self.net, cond)} does not take x of shape {tuple(x.shape)} with t of shape "
                f"{tuple(label.shape)}: {' '.join(str(error).split())}; build it for items of shape {tuple(x.shape[1:])}"
            ) from error
        except IndexError as error:  # of a table of classes, most often
            raise (ValueError(f"the network said {str(error)!r}{_NO_LABEL}") if _withheld(cond) else error) from error
        if not isinstance(y, Tensor):
            theirs = "; sf.pretrained.from_diffusers(model, scheduler) reads it" if hasattr(y, "sample") else ""
            raise ValueError(
                f"the network {_call_of(self.net, cond)} returned {type(y).__name__}, not a tensor like x{theirs}"
            )
        y = y.to(x.dtype)
        if y.shape != x.shape:
            raise ValueError(
                f"the network {_call_of(self.net, cond)} returned shape {tuple(y.shape)} for x of shape {tuple(x.shape)}"
            )
        return y

    def _general_view(self, name: View, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        """Score and velocity under a process without a Gaussian kernel; the other views do not exist there.

        Raises:
            ValueError: another view, or a network that predicts what such a process does not have.
        """
        sde: Any = self.sde
        scaled = self.predict == "noise" and hasattr(sde, "sigma")
        if name not in ("score", "velocity") or not (scaled or self.predict == "score"):
            what = f"{name}() needs" if name not in ("score", "velocity") else f"predict={self.predict!r} needs"
            raise ValueError(
                f"{what} a GaussianSDE; under {type(sde).__name__} a model has a score and a velocity, by predict='score'"
            )
        clock = t if self.clock == "t" else self._read_clock(t, sde.sigma(t) if self.clock == "sigma" else t)
        mirror, slope = getattr(sde, "mirror", None), None
        if mirror is not None:  # stages of a solver may lie beyond a wall, where a network knows nothing
            x, slope = mirror(x)
        score = self._call(x, clock, cond)
        score = score if slope is None else slope * score
        if scaled:
            score = -score / expand(sde.sigma(t), x)
        if scaled and mirror is not None:
            score = score * sde.gate(x, t)
        return score if name == "score" else sde.velocity(x, t, score)

    partial_score: bool = False
    """Whether its score leaves out entries into which no noise enters."""

    own_solver: Any = None
    """The solver that `sample` takes by default, for a kind of model that none is fitted to."""

    own_loss: Any = None
    """The loss that `train` takes by default in place of `dsm_loss`, for a kind of model that has another."""

    def check(self, x: Tensor, name: str = "x") -> None:
        """Refuse what is no batch of states of this model's process.

        Raises:
            ValueError: integers, booleans or complex numbers.
        """
        check_real(x, name)

    def exact_prior(self) -> PriorLike:
        """p_T as a distribution with `draw` and `log_prob`, where the model knows it, as `GaussianMixture` does.

        Raises:
            ValueError: it does not.
        """
        raise ValueError("prior='exact' needs a model that knows its own p_T, such as GaussianMixture")

    def take(self, index: Tensor, ndim: int = 0) -> ScoreModel:
        """The model for some samples of a batch (see `scorefield.rows`); itself, unless it holds conditions for each."""
        return self

    def inspect(self, x: Tensor, t: float = 0.0) -> None:
        """Warn of samples x that are not what the model was conditioned on; they carry the noise of time t, 0 for none."""

    def held(self, ndim: int = 0) -> int | None:
        """Number of samples that the model holds conditions for; None where it holds none, or one for all."""
        return None

    def under(self, sde: GaussianSDE) -> ScoreModel:
        """The same model read under another SDE, exactly: at equal alpha / sigma all of them are one process in x / alpha.

        E[x_0 | x_t] and E[eps | x_t] stay as they are, at the time of equal log-SNR and with x scaled; the score of a
        variance-exploding model becomes that of a contractive SDE (Tang & Zhao 2024, Thm. 4), with the factor of the scaling.

        Raises:
            ValueError: on use, at a time whose log-SNR this model's own SDE does not have.
        """
        return Reread(self, sde)

    def __or__(self, guidance: Callable[[ScoreModel], ScoreModel]) -> ScoreModel:
        """`model | guidance` is again a model."""
        return guidance(self)

    @property
    def denoises(self) -> bool:
        """Whether it has E[x_0 | x_t], with which a sampler may end."""
        return not isinstance(self.sde, SDE) or self.sde.tweedie

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights; torch's default where it has none."""
        tensor = self._weight()
        return torch.get_default_dtype() if tensor is None else tensor.dtype

    @property
    def device(self) -> torch.device:
        """Device of the network's weights; the CPU where it has none."""
        tensor = self._weight()
        return torch.device("cpu") if tensor is None else tensor.device

    def _weight(self) -> Tensor | None:
        """The first matrix of the network, whose dtype is the network's: frequencies and scales, which have one dimension,
        may keep float32 where the rest is cast to half."""
        first = None
        for p in self.parameters():
            if p.is_floating_point():
                if p.ndim > 1:
                    return p
                first = p if first is None else first
        return first if first is not None else next((b for b in self.buffers() if b.is_floating_point()), None)

    def _read_clock(self, t: Tensor, sigma: Tensor) -> Tensor:
        if self.clock == "t":
            return t
        if self.clock == "sigma":
            return sigma
        if self.clock == "log_sigma":
            return (-0.125 * self.sde.log_snr(t)).clamp(-FARTHEST, FARTHEST)
        return self.clock(t) if callable(self.clock) else t * float(self.clock)


class Guided(ScoreModel):
    """A model that reads another one, which is what guidance returns: a subclass overrides `view`, or `denoise` alone.

    Main arguments:
        base: the model underneath.
        guidance: what it is guided by, whose rows follow their samples (see `scorefield.rows`).

    Raises:
        ValueError: base and guidance are for different numbers of samples.
    """

    def __init__(self, base: ScoreModel, guidance: Any = None) -> None:
        super().__init__(base, base.sde, "score", shape=base.shape)
        self.data_levels, self.data_range = base.data_levels, base.data_range
        self.guidance = guidance
        self.held()

    @property
    def base(self) -> ScoreModel:
        """The model underneath."""
        return cast(ScoreModel, self.net)

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """The view of that name from what `denoise` returns."""
        if type(self).denoise is ScoreModel.denoise:
            raise TypeError(f"{type(self).__name__}: override view(name, x, t, cond), or denoise(x, t, **cond)")
        data = self.denoise(x, t, **cond)
        return data if name == "denoise" else convert(name, "denoise", data, x, t, self.sde)

    def take(self, index: Tensor, ndim: int = 0) -> ScoreModel:
        """The model of what belongs to some of the samples."""
        ndim = ndim or self._ndim
        base, guidance = take(self.base, index, ndim), take(self.guidance, index, ndim)
        return self if base is self.base and guidance is self.guidance else type(self)(base, guidance)

    def inspect(self, x: Tensor, t: float = 0.0) -> None:
        """What the model underneath has to say of samples x."""
        self.base.inspect(x, t)

    def held(self, ndim: int = 0) -> int | None:
        """Number of samples that the model and its guidance hold conditions for."""
        ndim = ndim or self._ndim
        counts = {"the model": held(self.base, ndim), type(self.guidance).__name__: held(self.guidance, ndim)}
        return agreed({name: count for name, count in counts.items() if count is not None})

    @property
    def _ndim(self) -> int:
        return 0 if self.shape is None else 1 + len(self.shape)


class Reread(Guided):
    """What `model.under(sde)` is: `base` at the time of equal log-SNR, `guidance` being the other SDE."""

    def __init__(self, base: ScoreModel, guidance: GaussianSDE) -> None:
        super().__init__(base, guidance)
        self.sde = guidance

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        time, own, other = batch_time(t, x), self.base.sde, self.sde
        level = other.log_snr(time)
        at = self._own_time(level)
        # Where one of the two is 0, or nearly, the other is not.
        towards_data = own.alpha(at) / other.alpha(time)
        scale = torch.where(level > 0, towards_data, own.sigma(at) / other.sigma(time))
        given: View = "denoise" if name == "denoise" or bool((other.alpha(time) == 0).any()) else "noise"
        value = self.base.view(given, expand(scale, x) * x, at, cond)
        return value if name == given else convert(name, given, value, x, time, other)

    def _own_time(self, level: Tensor) -> Tensor:
        """The times of the model's own SDE at which log-SNR is `level`."""
        own = self.base.sde
        low, high = float(own.log_snr(own.T)), float(own.log_snr(0.0))
        if level.numel() and not low - 1e-9 <= float(level.min()) <= float(level.max()) <= high + 1e-9:
            raise ValueError(
                f"{self.sde} asks for log-SNR from {float(level.min()):.3g} to {float(level.max()):.3g}; the model under {own} "
                f"knows {low:.3g} to {high:.3g}: choose t_start=, t_min= or grid= so that times stay inside"
            )
        return own.inverse_log_snr(level).clamp(0.0, own.T)


def _call_of(net: Any, cond: dict[str, Any]) -> str:
    """A call of a network as one would write it: Net(x, t, label=label)."""
    name = getattr(net, "__name__", type(net).__name__)
    return f"{name}({', '.join(['x', 't', *(f'{key}={key}' for key in cond)])})"


_MISFIT = re.compile(
    r"cannot be multiplied|expected input.* to have|must match the (existing )?size|must have the same number of dim|"
    r"normalized_shape|is invalid for input of size|Sizes of tensors must match"
)
"""What torch says where a network was built for other sizes."""
_NO_LABEL = (
    " where a label is -1, which stands for no label; give its table one row more and count from 1, as in "
    "nn.Embedding(num_classes + 1, width)(label + 1)"
)


def _withheld(cond: dict[str, Any]) -> bool:
    label = cond.get("label")
    return isinstance(label, Tensor) and bool((label < 0).any())


def _refused(net: Any, x: Tensor, t: Tensor, cond: dict[str, Any]) -> str | None:
    """Why a network cannot be called with x, t and conditions; None where its signature allows that."""
    call = net.forward if isinstance(net, nn.Module) else net
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(x, t, **cond)
    except TypeError as error:
        return (
            f"the network is called as {_call_of(net, cond)} and takes {signature}: {error}; x is (B, *) and t (B,), so wrap "
            "it in a function of these, such as lambda x, t: net(...)"
        )
    return None


def weights_hash(module: nn.Module) -> str:
    """A hash of the names and values of everything that `state_dict` holds."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def model_hash(model: ScoreModel) -> str:
    """A hash of a model's weights and of what it says at a few states.

    Functions, mixtures and guidance say what no weight shows. A network that asks for a condition is told by its weights alone.
    """
    sde, digest = model.sde, hashlib.sha256(weights_hash(model).encode())
    digest.update(repr((type(model).__name__, sde, getattr(model, "predict", None), model.shape)).encode())
    states = getattr(sde, "data_states", None)
    draws = torch.Generator().manual_seed(0)
    size = (3, *(model.shape or (1,)))
    for share in (0.1, 0.5, 0.9):
        t = sde.t_min + share * (sde.T - sde.t_min)
        x = torch.randn(size, generator=draws, device="cpu").to(model.device, model.dtype)
        try:
            if states is not None:
                said = model.view("log_posterior", (x.abs() * 7).long() % states, t, {})  # type: ignore[arg-type]
            else:
                said = getattr(model, "jump", model.score)(x, t)
        except (TypeError, ValueError, RuntimeError, AttributeError):
            break
        digest.update(" ".join(f"{v:.4g}" for v in said.flatten()[:512].tolist()).encode())
    return digest.hexdigest()
