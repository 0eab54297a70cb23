"""Samplers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

SamplerName = Literal[
    "dpm",
    "ddim",
    "pc",
    "pc-ancestral",
    "reverse-diffusion",
    "ancestral",
    "euler-maruyama",
    "probability-flow",
    "euler",
    "heun",
    "rk4",
    "bosh3",
    "dopri5",
    "tsit5",
]


FLOW_SAMPLERS = ("dpm", "ddim", "probability-flow", "euler", "heun", "rk4", "bosh3", "dopri5", "tsit5")
"""Those that follow the probability flow, so that the first noise decides all."""


def make_sampler(name: str, sde: Any, snr: float | None = None) -> Any:
    """The solver called `name`; the signal-to-noise ratio of its corrector is the paper's (Table 5) unless given."""
    import scorefield as sf

    def langevin() -> Any:
        return sf.Langevin(snr=(0.16 if isinstance(sde, sf.VE) else 0.01) if snr is None else snr)

    makers: dict[str, Callable[[], Any]] = {
        "dpm": sf.DPMSolver,
        "ddim": sf.DDIM,
        "pc": lambda: sf.PC(sf.ReverseDiffusion(), langevin()),
        "pc-ancestral": lambda: sf.PC(sf.Ancestral(), langevin()),
        "reverse-diffusion": sf.ReverseDiffusion,
        "ancestral": sf.Ancestral,
        "euler-maruyama": sf.EulerMaruyama,
        "probability-flow": sf.solve.ProbabilityFlow,
        "euler": sf.Euler,
        "heun": sf.Heun,
        "rk4": sf.solve.RK4,
        "bosh3": sf.solve.Bosh3,
        "dopri5": sf.Dopri5,
        "tsit5": sf.solve.Tsit5,
    }
    return makers[name]()
