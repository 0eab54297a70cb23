"""Seeded outputs of every solver, likelihood, guidance and posterior sampler, to hold a change of structure against.

    python tools/outputs.py record before.safetensors        # at the commit before
    python tools/outputs.py compare before.safetensors       # after: bit for bit, or --tolerance 1e-6

Bits agree on one machine only, so the recording is not a part of the repository.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator

import safetensors.torch
import torch
from torch import Tensor

import scorefield as sf


def name(word: str) -> object:
    """A public name, at the root or in the folder that has it."""
    for place in ("", ".solve", ".inverse", ".guide", ".likelihood", ".times", ".evaluation"):
        found = getattr(importlib.import_module(f"scorefield{place}"), word, None)
        if found is not None:
            return found
    raise AttributeError(word)


class Cubic(sf.GaussianSDE):
    """A user's SDE, with alpha(T) = 0."""

    def alpha(self, t):
        return 1 - t**3

    def sigma(self, t):
        return t


SDES = {"vp": sf.VP(), "ve": sf.VE(), "subvp": sf.SubVP(), "cubic": Cubic()}

SOLVERS: dict[str, Callable[[], object]] = {
    "dpm1": lambda: name("DPMSolver")(1),
    "dpm2": lambda: name("DPMSolver")(2),
    "dpm3": lambda: name("DPMSolver")(3),
    "single3": lambda: name("DPMSolverSingle")(3),
    "deis": lambda: name("DEIS")(),
    "unipc": lambda: name("UniPC")(),
    "ddim": lambda: name("DDIM")(),
    "ddim1": lambda: name("DDIM")(eta=1.0),
    "euler": lambda: name("Euler")(),
    "heun": lambda: name("Heun")(),
    "rk4": lambda: name("RK4")(),
    "em": lambda: name("EulerMaruyama")(),
    "rd": lambda: name("ReverseDiffusion")(),
    "pf": lambda: name("ProbabilityFlow")(),
    "ancestral": lambda: name("Ancestral")(),
    "transition": lambda: name("Ancestral")(variance="transition"),
    "analytic": lambda: name("AnalyticAncestral")(),
    "analytic-full": lambda: name("AnalyticAncestral")("full"),
    "expsde": lambda: name("ExponentialSDE")(),
    "karras": lambda: name("KarrasHeun")(),
    "churn": lambda: name("Churn")(),
    "pc": lambda: name("PC")(),
    "pc-sample": lambda: name("PC")(name("ReverseDiffusion")(), name("Langevin")(norm="sample")),
    "pc-batch": lambda: name("PC")(name("Ancestral")(), name("Langevin")(norm="batch"), correct_first=True),
    "annealed": lambda: name("PC")(name("Identity")(), name("AnnealedLangevin")()),
    "adaptive-grid": lambda: name("AdaptiveSDE")(),
    "dopri5-grid": lambda: name("Dopri5")(),
}
ADAPTIVE = ("Bosh3", "Dopri5", "Tsit5", "AdaptiveSDE")


def mixture(sde: sf.GaussianSDE, dtype: torch.dtype) -> sf.GaussianMixture:
    """Two rotated, unequal Gaussians in three dimensions."""
    root = torch.tensor([[0.5, 0.1, 0.0], [0.2, 0.3, 0.1], [0.0, 0.0, 0.2]], dtype=torch.float64)
    covs = torch.stack([root @ root.T + 0.01 * torch.eye(3), 0.05 * torch.eye(3).double()])
    means = torch.tensor([[0.8, -0.4, 0.1], [-0.6, 0.5, 0.3]], dtype=dtype)
    return sf.GaussianMixture(means, covs, [0.3, 0.7], sde)


def network(predict: str, sde: sf.GaussianSDE) -> sf.ScoreModel:
    """A small U-Net with fixed weights."""
    torch.manual_seed(3)
    net = sf.nn.UNet(1, 8, (1, 2), 1, attn=(), dropout=0.0, init_scale=1.0, num_classes=3).eval()
    return sf.ScoreModel(net, sde, predict, shape=(1, 8, 8))


def everything() -> Iterator[tuple[str, Tensor]]:
    """(what, outcome) of every seeded call."""
    yield from _solvers()
    yield from _likelihoods()
    yield from _posteriors()
    yield from _networks()


def _solvers() -> Iterator[tuple[str, Tensor]]:
    for tag, sde in SDES.items():
        gm = mixture(sde, torch.float64)
        for word, make in SOLVERS.items():
            found = sf.sample(gm, 5, make(), steps=9, seed=1, full=True)
            yield f"solve/{tag}/{word}", found.x
            yield f"solve/{tag}/{word}/nfe", found.nfe
            yield f"solve/{tag}/{word}/path", found.path
        for word in ADAPTIVE:
            found = sf.sample(gm, 5, name(word)(), seed=2, full=True, batch_size=3)
            yield f"adaptive/{tag}/{word}", found.x
            yield f"adaptive/{tag}/{word}/nfe", found.nfe
            yield f"adaptive/{tag}/{word}/path", found.path
        yield f"default/{tag}", sf.sample(gm, 6, seed=3, steps=8)
        yield f"default32/{tag}", sf.sample(mixture(sde, torch.float32), 6, seed=3)
        x = gm.sample(4, seed=5)
        z = sf.encode(gm, x)
        yield f"encode/{tag}", z
        yield f"decode/{tag}", sf.decode(gm, z)
        yield f"encode-ddim/{tag}", sf.encode(gm, x, name("DDIM")())


def _likelihoods() -> Iterator[tuple[str, Tensor]]:
    for tag in ("vp", "ve", "subvp"):
        gm = mixture(SDES[tag], torch.float64)
        x = gm.sample(4, seed=5)
        for trace in ("exact", "hutchinson", "hutch++"):
            for mode in ("auto", "reverse"):
                # Hutch++ is not smooth where its basis turns, and adaptive steps would be tiny there.
                fixed = {"solver": name("RK4")(), "steps": 10} if trace == "hutch++" else {}
                lp = sf.log_prob(gm, x, trace=trace, probes=2, seed=0, mode=mode, **fixed)
                yield f"log_prob/{tag}/{trace}/{mode}", lp.nats
                yield f"log_prob/{tag}/{trace}/{mode}/nfe", lp.nfe
                yield f"log_prob/{tag}/{trace}/{mode}/latent", lp.latent
        yield f"log_prob-rk4/{tag}", sf.log_prob(gm, x, "exact", solver=name("RK4")(), steps=20).nats
        yield f"elbo/{tag}", name("elbo")(gm, x, seed=0).nats
        yield f"dsm/{tag}", sf.dsm_loss(gm, x, seed=0)


def _posteriors() -> Iterator[tuple[str, Tensor]]:
    H = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.4, 1.0]]).double()
    for tag in ("vp", "ve"):
        gm = mixture(SDES[tag], torch.float64)
        A = name("Dense")(H, (3,))
        y = A(gm.sample(1, seed=9))
        for method in ("dps", "pigdm", "tmpd", "mmps", "diffpir"):
            posterior = gm | name("Posterior")(A, y, 0.1, method=method)
            yield f"posterior/{tag}/{method}", sf.sample(posterior, 4, name("DDIM")(eta=1.0), steps=8, seed=0)
        known = name("Mask")(torch.tensor([True, False, True]))
        hooks = [name("Replace")(known, known(gm.sample(1, seed=9)))]
        yield f"replace/{tag}", sf.sample(gm, 4, name("PC")(), hooks=hooks, steps=8, seed=0)
        yield f"ddrm/{tag}", sf.sample(gm, 4, name("DDRM")(A, y, 0.1), steps=8, seed=0)
        yield f"smc/{tag}", name("twisted_smc")(gm, A, y, 0.1, particles=16, steps=6, seed=0).draw(4, 0)
        for method in ("mmps", "pigdm", "ddrm", "repaint", "replace"):
            noise = 0.0 if method in ("repaint", "replace") else 0.1
            op, meas = (known, known(gm.sample(1, seed=9))) if noise == 0.0 else (A, y)
            done = name("restore")(gm, op, meas, noise, 3, method, steps=6, seed=0)
            yield f"restore/{tag}/{method}", done.samples


def _networks() -> Iterator[tuple[str, Tensor]]:
    for predict in ("noise", "score", "data", "velocity", "edm"):
        for tag in ("vp", "ve"):
            model = network(predict, SDES[tag])
            yield f"network/{predict}/{tag}", sf.sample(model, 3, name("DPMSolver")(), steps=5, seed=0)
            guided = model | name("ClassifierFree")(scale=2.0)
            label = torch.tensor([0, 1, 2])
            yield f"free/{predict}/{tag}", sf.sample(guided, 3, name("DDIM")(), steps=4, seed=0, label=label)
    model = network("noise", SDES["vp"])
    guided = model | name("ClassifierGuidance")(lambda x, t: x.flatten(1)[:, :4], torch.tensor([0, 1, 2]), 2.0)
    yield "classifier", sf.sample(guided, 3, name("Ancestral")(), steps=4, seed=0)
    yield "autoguidance", sf.sample(model | name("Autoguidance")(network("edm", SDES["vp"]), 2.0), 3, steps=4, seed=0)
    yield "fitted-network", sf.sample(model, 3, steps=4, seed=0)
    x = sf.sample(model, 2, name("DDIM")(), steps=4, seed=1)
    yield "log_prob-network", sf.log_prob(model, x, probes=2, seed=0).nats
    yield "dsm-network", sf.dsm_loss(model, x, seed=0)
    digits = sf.load("digits")
    yield "digits", sf.sample(digits, 2, name("DDIM")(eta=1.0), steps=4, seed=0)


def main() -> int:
    """Record, or compare with a recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("record", "compare"))
    parser.add_argument("file")
    parser.add_argument("--tolerance", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.verb == "record":
        found = {what: value.detach().clone().contiguous() for what, value in everything()}
        safetensors.torch.save_file(found, options.file)
        print(f"{len(found)} outputs recorded in {options.file}")
        return 0
    before, worse = safetensors.torch.load_file(options.file), 0
    for what, value in everything():
        old = before.pop(what)
        if old.shape != value.shape or old.dtype != value.dtype:
            print(f"{what}: {tuple(old.shape)} {old.dtype} is now {tuple(value.shape)} {value.dtype}")
            worse += 1
            continue
        gap = (old.double() - value.detach().double()).abs().nan_to_num(0.0)
        size = float(gap.max() / old.double().abs().nan_to_num(0.0).max().clamp_min(1e-300))
        if not torch.equal(old.nan_to_num(), value.nan_to_num()) and not size <= options.tolerance:
            print(f"{what}: differs by {size:.1e} of its largest entry")
            worse += 1
    for what in before:
        print(f"{what}: missing")
    print(f"{worse + len(before)} outputs differ")
    return 1 if worse or before else 0


if __name__ == "__main__":
    sys.exit(main())
