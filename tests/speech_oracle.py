"""The authors' form of the processes that lead to y: the SDE of x = u + c(t) y, whose drift holds y."""

from __future__ import annotations

import torch

from scorefield.coefficients import expand


def in_x(base, y, scale=2**-0.5):
    """The SDE of x itself: drift f (x - c y) + c' y; its correctors know no alpha."""

    class InX(base):
        def reverse_drift(self, x, t, score, noise=1.0):
            c, slope = torch.func.jvp(self.shift, (t,), (torch.ones_like(t),))
            towards_y = expand(slope - self.f(t) * c, x) * y
            return super().reverse_drift(x, t, score, noise) + towards_y

        def alpha(self, t):
            return torch.ones_like(t)

    return InX(scale=scale)
