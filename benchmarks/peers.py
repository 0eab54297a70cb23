"""The samplers of diffusers, k-diffusion and azula, on the same exact models and from the same prior draws as ours.

Every entry is `peer(model, x, budget) -> samples`: `model(y, rho)` is E[x_0 | x_t = y / sqrt(1 + rho^2)], rho = sigma / alpha,
and counts its calls; x is the state of VP at T; `budget` is the largest number of calls. Where a package has the training
times of DDPM in tables, the tables are those of the VP SDE at t = 1/1000, 2/1000, ..., 1, and the model is asked at the very
noise level that the sampler believes it is at. Each package ends at the data, as it does by default.

k-diffusion's module of samplers is loaded alone: its package wants torchvision and more, which no sampler needs.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import scorefield as sf

Denoiser = Callable[[Tensor, Tensor], Tensor]
Peer = Callable[[Denoiser, Tensor, int], Tensor]

SDE = sf.VP()
T_MIN = 1e-3
HIGH, LOW = (math.exp(-0.5 * float(SDE.log_snr(t))) for t in (1.0, T_MIN))
"""Largest and smallest sigma / alpha that every package is told."""


def ode_peers() -> dict[str, Peer]:
    """Deterministic samplers by name."""
    found: dict[str, Peer] = {}
    for spacing in ("linspace", "trailing"):
        found[f"diffusers DDIM {spacing}"] = partial(_ddim, eta=0.0, spacing=spacing)
    for order in (2, 3):
        for name, options in _GRIDS.items():
            found[f"diffusers DPMSolverMultistep {order} {name}"] = partial(
                _sigmas, "DPMSolverMultistepScheduler", {"solver_order": order, **options}
            )
            found[f"diffusers UniPC {order} {name}"] = partial(
                _sigmas, "UniPCMultistepScheduler", {"solver_order": order, **options}
            )
    for name in ("linspace", "karras", "exponential"):
        found[f"diffusers Heun {name}"] = partial(_heun, _GRIDS[name])
    for grid in ("karras", "exponential", "vp"):
        for sampler, stages in (("euler", 1), ("heun", 2), ("lms", 1), ("dpmpp_2m", 1)):
            found[f"k-diffusion {sampler} {grid}"] = partial(_k_diffusion, f"sample_{sampler}", grid, stages, {})
        found[f"k-diffusion dpmpp_2s {grid}"] = partial(
            _k_diffusion, "sample_dpmpp_2s_ancestral", grid, 2, {"eta": 0.0}
        )
    for grid in ("t", "log_snr"):
        for sampler in ("DDIM", "Heun", "zAB3", "vAB3", "zEAB3", "xEAB2", "xEAB3", "REAB3"):
            found[f"azula {sampler} {grid}"] = partial(_azula, sampler, {}, grid)
    return found


def sde_peers() -> dict[str, Peer]:
    """Stochastic samplers by name."""
    found: dict[str, Peer] = {
        "diffusers DDIM eta=1": partial(_ddim, eta=1.0, spacing="trailing"),
        "diffusers ScoreSdeVe": partial(_score_sde_ve, 0),
        "diffusers ScoreSdeVe + corrector": partial(_score_sde_ve, 1),
    }
    for name in ("linspace", "karras"):
        for order in (1, 2):
            options = {"algorithm_type": "sde-dpmsolver++", "solver_order": order, **_GRIDS[name]}
            found[f"diffusers sde-dpmsolver++ {order} {name}"] = partial(
                _sigmas, "DPMSolverMultistepScheduler", options
            )
    for sampler, stages in (
        ("euler_ancestral", 1),
        ("dpm_2_ancestral", 2),
        ("dpmpp_2s_ancestral", 2),
        ("dpmpp_sde", 2),
        ("dpmpp_2m_sde", 1),
        ("dpmpp_3m_sde", 1),
    ):
        found[f"k-diffusion {sampler} karras"] = partial(_k_diffusion, f"sample_{sampler}", "karras", stages, {})
    for grid in ("t", "log_snr"):
        found[f"azula DDPM {grid}"] = partial(_azula, "DDPM", {}, grid)
        found[f"azula Ito {grid}"] = partial(_azula, "Ito", {}, grid)
    found["azula PC t"] = partial(_azula, "PC", {"corrections": 1}, "t")
    return found


# diffusers

_GRIDS: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}


@cache
def _trained_betas() -> np.ndarray:
    alpha = torch.square(SDE.alpha(torch.arange(1001, dtype=torch.float64) / 1000))
    return (1 - alpha[1:] / alpha[:-1]).numpy()


def _scheduler(kind: str, options: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, kind)(trained_betas=_trained_betas(), **options)


def _noise_of(model: Denoiser, x: Tensor, rho: float) -> Tensor:
    """eps from x = alpha x_0 + sigma eps at alpha^2 + sigma^2 = 1."""
    scale = math.sqrt(1 + rho**2)
    y = x * scale
    return (y - model(y, torch.tensor(rho, dtype=torch.float64))) / rho


def _ddim(model: Denoiser, x: Tensor, budget: int, eta: float, spacing: str) -> Tensor:
    options = {"timestep_spacing": spacing, "clip_sample": False, "set_alpha_to_one": True}
    scheduler = _scheduler("DDIMScheduler", options)
    scheduler.set_timesteps(budget)
    for t in scheduler.timesteps:
        alpha2 = float(scheduler.alphas_cumprod[t])
        e = _noise_of(model, x, math.sqrt((1 - alpha2) / alpha2))
        x = scheduler.step(e, t, x, eta=eta).prev_sample
    return x


def _sigmas(kind: str, options: dict[str, Any], model: Denoiser, x: Tensor, budget: int) -> Tensor:
    scheduler = _scheduler(kind, options)
    scheduler.set_timesteps(budget)
    scheduler.set_begin_index(0)  # rounded times may repeat, and must not be mistaken for each other
    for i, t in enumerate(scheduler.timesteps):
        e = _noise_of(model, x, float(scheduler.sigmas[i]))
        x = scheduler.step(e, t, x).prev_sample
    return x


def _heun(options: dict[str, Any], model: Denoiser, x: Tensor, budget: int) -> Tensor:
    scheduler = _scheduler("HeunDiscreteScheduler", options)
    scheduler.set_timesteps((budget + 1) // 2)
    scheduler.set_begin_index(0)
    y = x * math.sqrt(1 + HIGH**2)
    for i, t in enumerate(scheduler.timesteps):
        rho = scheduler.sigmas[i]  # it has every inner one twice: once predicted, and once started from
        y = scheduler.step((y - model(y, rho.double())) / rho, t, y).prev_sample
    return y


def _score_sde_ve(corrections: int, model: Denoiser, x: Tensor, budget: int) -> Tensor:
    from diffusers import ScoreSdeVeScheduler

    scheduler = ScoreSdeVeScheduler(sigma_min=LOW, sigma_max=HIGH, correct_steps=corrections)
    steps = budget // (1 + corrections)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    y, mean = x * HIGH, x
    for i, t in enumerate(scheduler.timesteps):
        rho = scheduler.sigmas[i].double()
        for _ in range(corrections):
            y = scheduler.step_correct((model(y, rho) - y) / rho**2, y).prev_sample
        out = scheduler.step_pred((model(y, rho) - y) / rho**2, t, y)
        y, mean = out.prev_sample, out.prev_sample_mean
    return mean


# k-diffusion


@cache
def _samplers() -> ModuleType:
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("k-diffusion is not installed: pip install --no-deps k-diffusion")
    package = ModuleType("k_diffusion_samplers")
    package.__path__ = list(found.submodule_search_locations)
    helpers = ModuleType("k_diffusion_samplers.utils")
    helpers.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    absent = [name for name in ("torchdiffeq", "torchsde") if importlib.util.find_spec(name) is None]
    for name in absent:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].odeint = None  # type: ignore[attr-defined]
    sys.modules |= {package.__name__: package, helpers.__name__: helpers}
    package.utils = helpers  # type: ignore[attr-defined]
    path = package.__path__[0] + "/sampling.py"
    spec = importlib.util.spec_from_file_location("k_diffusion_samplers.sampling", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in absent:
        del sys.modules[name]
    return module


def _k_diffusion(
    sampler: str, grid: str, stages: int, options: dict[str, Any], model: Denoiser, x: Tensor, budget: int
) -> Tensor:
    module = _samplers()
    n = (budget + stages - 1) // stages
    if grid == "vp":
        sigmas = module.get_sigmas_vp(n, beta_d=SDE.beta_max - SDE.beta_min, beta_min=SDE.beta_min, eps_s=T_MIN)
    else:
        sigmas = getattr(module, f"get_sigmas_{grid}")(n, LOW, HIGH)
    if sampler.endswith(("_sde", "_ancestral")) and "eta" not in options:
        options = {**options, "noise_sampler": lambda *_: torch.randn_like(x)}
    y = x * math.sqrt(1 + HIGH**2)
    return getattr(module, sampler)(lambda y, rho: model(y, rho), y, sigmas.double(), disable=True, **options)


# azula


def _azula(sampler: str, options: dict[str, Any], grid: str, model: Denoiser, x: Tensor, budget: int) -> Tensor:
    from azula import sample as samplers
    from azula.denoise import DiracPosterior

    if sampler[-1].isdigit():
        sampler, options = sampler[:-1], {**options, "order": int(sampler[-1])}
    low, high = float(SDE.log_snr(1.0)), float(SDE.log_snr(T_MIN))

    def schedule(u: Tensor) -> tuple[Tensor, Tensor]:
        t = T_MIN + u * (1 - T_MIN) if grid == "t" else SDE.inverse_log_snr(high + u * (low - high))
        return SDE.alpha(t), SDE.sigma(t)

    def denoise(y: Tensor, u: Tensor) -> Any:
        alpha, sigma = schedule(u)
        return DiracPosterior(mean=model(y / alpha, sigma / alpha))

    class Denoise:
        def __call__(self, y: Tensor, u: Tensor) -> Any:
            return denoise(y, u)

    view = Denoise()
    view.schedule = schedule  # type: ignore[attr-defined]
    a_step = 2 if sampler in ("Heun", "PC") else 1
    steps = max(1, (budget - 1) // a_step)
    run = getattr(samplers, f"{sampler}Sampler")(view, steps=steps, silent=True, dtype=torch.float64, **options)
    x = run(x)
    return denoise(x, torch.tensor(0.0, dtype=torch.float64)).mean
