"""Fine-tuning a sampler by a reward: towards p(x) e^{r(x) / temperature}, with the KL to the base in nats beside it.

A chain of K Gaussian steps p(x_{k+1} | x_k) = N(m(x_k), s_k^2 I), of any solver that has a `kernel`, is a policy. Every method
here maximises E[r(x_K)] / temperature - KL(tuned || base) over paths, whose optimum is the base chain tilted by its reward.
"""

from scorefield.reward.finetune import Figures, Tuned, finetune, measure
from scorefield.reward.methods import (
    AdjointMatching,
    Critic,
    DirectBackpropagation,
    PolicyGradient,
    Rollout,
    ScoresAsActions,
)
from scorefield.reward.paths import Chain, Paths, follow, lean_adjoint, log_density

__all__ = [
    "AdjointMatching",
    "Chain",
    "Critic",
    "DirectBackpropagation",
    "Figures",
    "Paths",
    "PolicyGradient",
    "Rollout",
    "ScoresAsActions",
    "Tuned",
    "finetune",
    "follow",
    "lean_adjoint",
    "log_density",
    "measure",
]
