"""`ScoreDensity`, the estimator."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch

try:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("ScoreDensity needs scikit-learn 1.6 or later: pip install 'scorefield[sklearn]'") from error

from scorefield.analytic import GaussianMixture
from scorefield.data.scale import Scale
from scorefield.data.tables import few_values
from scorefield.density.corrected import Plan, correct
from scorefield.density.given import draw_given, read_given
from scorefield.density.mixture import choose
from scorefield.differentiate import differentiation
from scorefield.errors import ScorefieldWarning
from scorefield.inputs import whole
from scorefield.likelihood import log_prob
from scorefield.progress import Bar
from scorefield.sampling import sample
from scorefield.sdes import VE
from scorefield.solve.ode import Dopri5

Array = np.ndarray
TRIED = 4
"""Rows of the mixture for each row that networks choose."""
NOISE = (0.01, 10.0)
"""Least and greatest noise, in standard deviations of the columns."""


@dataclass(frozen=True)
class TableNoise(VE):
    """VE for columns of unit variance, which have outliers."""

    sigma_min: float = NOISE[0]
    sigma_max: float = NOISE[1]
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)


class ScoreDensity(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """Density of the rows of a table, with scikit-learn's habits: fit, score_samples, score, sample.

    Three layers, each judged on rows that it has not seen: every column straightened by a power (Yeo & Johnson 2000) and
    decorrelated; a Gaussian mixture whose kind and size cross-validation chooses, as the mean of the fits of all folds;
    and what held-out rows gain more from: an ensemble of small networks that corrects the mixture's denoiser, trained by
    denoising score matching with the likelihood's weighting (Song et al. 2021b), or, in small tables, a share of kernels on
    the rows themselves (stacking, Smyth & Wolpert 1999). The log-density is exact, by the probability flow (Song et
    al. 2021, eq. 39), and in the units of the table. A column that repeats few values has no density: a
    warning names it; add noise of one unit first.

    Main arguments:
        steps: most training steps of the networks; 0 for none.
        minutes: when training stops in any case; a fit that it cuts short depends on the machine.
        random_state: int, numpy RandomState or None, as everywhere in scikit-learn.

    Other arguments:
        members: folds, with a network for each. width, depth: of the networks.
        batch_size: rows for each member and step. learning_rate, weight_decay: of AdamW.
        tolerance: relative and absolute, of the flow.
        verbose: show progress.

    Attributes:
        model_: the score model of the straightened columns, a `GaussianMixture` where no network helped most; scale_: the
            map to these columns, a `scorefield.data.scale.Scale`.
        gain_: mean held-out nats of a row that networks or kernels gained; n_steps_: training steps of the networks.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
    """

    def __init__(
        self,
        *,
        steps: int = 2000,
        minutes: float = 2.0,
        random_state: Any = None,
        members: int = 4,
        width: int = 128,
        depth: int = 2,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        tolerance: float = 1e-4,
        verbose: bool = False,
    ) -> None:
        self.steps = steps
        self.minutes = minutes
        self.random_state = random_state
        self.members = members
        self.width = width
        self.depth = depth
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.tolerance = tolerance
        self.verbose = verbose

    @differentiation()
    def fit(self, X: Any, y: Any = None) -> ScoreDensity:
        """Learn the density of the rows of X (N, D); y is ignored.

        Raises:
            ValueError: fewer than five rows, a constant column, or what no table holds (text, NaN, infinity, complex numbers).
        """
        self._check()
        x = validate_data(self, _plain(X), dtype=np.float64, ensure_min_samples=5)
        self._check_columns(x)
        told = few_values(torch.tensor(x, device="cpu"), "X", getattr(self, "feature_names_in_", ()))
        if told is not None:
            warnings.warn(told, ScorefieldWarning, stacklevel=2)
        draws = torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
        members = min(self.members, len(x) // 2)
        order = torch.randperm(len(x), generator=draws, device=draws.device)
        folds = order[: len(x) // members * members].reshape(members, -1)
        seed, seconds = int(torch.randint(2**31 - 100, (), generator=draws, device=draws.device)), 60 * self.minutes
        rows = torch.tensor(x, device="cpu")  # which may be read-only
        apart, together = Scale.of_columns(rows, whiten=False), Scale.of_columns(rows)
        chosen = choose(rows, list(folds), {"full": together, "tied": together, "diag": apart}, seed, seconds / 3)
        self.scale_ = chosen.scale
        mixture = GaussianMixture(*chosen.mixture, TableNoise())
        plan = Plan(
            self.width,
            self.depth,
            self.steps,
            self.batch_size,
            self.learning_rate,
            self.weight_decay,
            seconds,
        )
        with Bar("fitting the density", None if self.verbose else False) as bar:
            found = correct(mixture, self.scale_.to_model(rows), folds, plan, draws, bar)
        self.mixture_, self.model_ = mixture, found.model
        self.gain_, self.n_steps_ = float(found.gains.mean()), found.steps
        if chosen.kernel_gain > self.gain_:
            self.mixture_ = self.model_ = GaussianMixture(*chosen.with_kernels, TableNoise())
            self.gain_ = chosen.kernel_gain
        return self

    def score_samples(self, X: Any) -> Array:
        """Log-density of each row of X (N, D), in nats and in the units of the table, (N,)."""
        check_is_fitted(self)
        x = validate_data(self, _plain(X), dtype=np.float64, reset=False)
        return self._log_prob(torch.tensor(x, device="cpu"), self.model_)

    def _log_prob(self, table: torch.Tensor, model: Any) -> Array:
        """Log-density of rows (N, D) in the units of the table under `mixture_` or the model on top of it."""
        rows = self.scale_.forward(table)
        if model is self.mixture_:
            nats = self.mixture_.log_prob(rows, 0.0)
        else:
            nats = log_prob(model, rows, "exact", batch_size=512, prior=self._prior(), **self._flow()).nats
        result: Array = (nats - self.scale_.log_volume(table)).numpy()
        return result

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-density of the rows of X, as scikit-learn's GaussianMixture has it; y is ignored."""
        return float(self.score_samples(X).mean())

    def sample(
        self, n_samples: int = 1, random_state: Any = None, *, given: Mapping[int | str, float] | None = None
    ) -> Array:
        """Rows drawn from the density, (n_samples, D).

        Main arguments:
            given: values that some columns have, by name or number, in the units of the table: the others are drawn from
                their law given these. Exact where `model_` is a mixture; where networks correct it, rows of the mixture's
                conditional law are drawn anew in proportion to the correction of their density (Rubin 1988), four for one.

        Raises:
            ValueError: `given` names no column, or all of them, or holds what is no finite number.
        """
        check_is_fitted(self)
        n_samples = whole(n_samples, "n_samples", "the number of rows")
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        if given:
            names = list(getattr(self, "feature_names_in_", ()))
            return self._sample_given(read_given(given, names, self.n_features_in_), n_samples, seed)
        shape = (self.n_features_in_,)
        if self.model_ is self.mixture_:
            z = self.mixture_.sample(n_samples, 0.0, seed)
        else:
            options = {"shape": shape, "prior": self._prior(), "seed": seed, "batch_size": min(n_samples, 4096)}
            z = sample(self.model_, n_samples, progress=self.verbose, **options, **self._flow())
        x: Array = self.scale_.to_units(z.double()).numpy()
        return x

    def _sample_given(self, given: dict[int, float], n: int, seed: int) -> Array:
        exact = self.model_ is self.mixture_
        rows = draw_given(self.mixture_, self.scale_, given, n if exact else TRIED * n, seed)
        if not exact:
            gained = torch.from_numpy(self._log_prob(rows, self.model_) - self._log_prob(rows, self.mixture_))
            shares = torch.softmax(gained, 0)
            rows = rows[torch.multinomial(shares, n, replacement=True, generator=torch.Generator().manual_seed(seed))]
            alike = float(1 / shares.square().sum())
            if alike < n / 2:
                told = f"sample: given these values networks and mixture disagree; the rows are worth about {alike:.0f}"
                warnings.warn(told, ScorefieldWarning, stacklevel=3)
        x: Array = rows.numpy()
        return x

    def _flow(self) -> dict[str, Any]:
        return {"solver": Dopri5(self.tolerance, self.tolerance), "t_min": 0.0}

    def _prior(self) -> Any:
        return self.mixture_.marginal(self.mixture_.sde.T)

    def _check(self) -> None:
        least = {"steps": 0, "members": 2, "width": 1, "depth": 0, "batch_size": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not (isinstance(value, Integral) and int(value) >= low):
                raise ValueError(f"{name}={value!r}: a whole number is needed, at least {low}")
        for name in ("minutes", "learning_rate", "tolerance"):
            if not (isinstance(value := getattr(self, name), Real) and float(value) > 0):
                raise ValueError(f"{name}={value!r}: a positive number is needed")
        if not (isinstance(self.weight_decay, Real) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay={self.weight_decay!r}: 0 or a positive number is needed")

    def _check_columns(self, x: Array) -> None:
        constant = np.flatnonzero(x.std(0) <= 1e-12 * np.abs(x).max(0))
        if len(constant):
            names = getattr(self, "feature_names_in_", None)
            which = int(constant[0]) if names is None else repr(names[constant[0]])
            raise ValueError(
                f"X: column {which} is constant, where a density is infinite; leave it out, or add noise to it"
            )


def _plain(X: Any) -> Any:
    """Tensors as arrays, with the dtypes and graphs that NumPy does not know."""
    return X.detach().cpu().double().numpy() if isinstance(X, torch.Tensor) and not X.is_complex() else X
