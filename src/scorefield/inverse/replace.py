"""Imputation by replacement, a hook on the sampling loop."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scorefield.inverse.operators import Operator
from scorefield.noise import Noise
from scorefield.sde import expand
from scorefield.solve.integrate import Field


@dataclass(frozen=True, eq=False)
class Replace:
    """After every step, what was measured follows the forward process of the measurement (Song et al. 2021, App. I.2).

    x <- x + A^T (alpha y + sigma A z - A x), at the noise level that the step has reached.

    This is the paper's algorithm; its samples are biased, since the unknown part is never pulled towards what the
    measurement implies about it at larger noise (SCIENCE 5.6). `operator` needs A A^T = 1 on its range, as a mask has.

    Main arguments:
        operator: object with __call__ and adjoint, such as `Mask`.
        y: measurement, A(x) of clean data: (B, *), or (1, *) for all samples.
    """

    operator: Operator
    y: Tensor

    def __call__(self, x: Tensor, t: Tensor, field: Field, noise: Noise) -> Tensor:
        """Replace at noise level t."""
        y = self.y.to(x)
        alpha, sigma = field.sde.alpha(t), field.sde.sigma(t)
        known = expand(alpha, y) * y + self.operator(expand(sigma, x) * noise.like(x))
        return x + self.operator.adjoint(known - self.operator(x))

    def finish(self, x: Tensor) -> Tensor:
        """Put the clean measurement into the denoised sample."""
        return x + self.operator.adjoint(self.y.to(x) - self.operator(x))
