"""Solvers, one file a family, and the two loops that run them."""

from scorefield.solve.adaptive_sde import AdaptiveSDE
from scorefield.solve.analytic_variance import AnalyticAncestral
from scorefield.solve.exponential import DDIM, DEIS, DPMSolver, DPMSolverSingle, ExponentialSDE, UniPC
from scorefield.solve.fitted import Fitted
from scorefield.solve.integrate import Solution, Solver
from scorefield.solve.karras import Churn, KarrasHeun
from scorefield.solve.ode import RK4, Bosh3, Dopri5, Euler, Heun, Tsit5
from scorefield.solve.pc import PC, AnnealedLangevin, Identity, Langevin
from scorefield.solve.reverse import Ancestral, EulerMaruyama, ProbabilityFlow, ReverseDiffusion
from scorefield.solve.tamed import TamedEuler
from scorefield.solve.tuned import Tuned, tune

__all__ = [
    "DDIM",
    "DEIS",
    "PC",
    "RK4",
    "AdaptiveSDE",
    "AnalyticAncestral",
    "Ancestral",
    "AnnealedLangevin",
    "Bosh3",
    "Churn",
    "DPMSolver",
    "DPMSolverSingle",
    "Dopri5",
    "Euler",
    "EulerMaruyama",
    "ExponentialSDE",
    "Fitted",
    "Heun",
    "Identity",
    "KarrasHeun",
    "Langevin",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "Solution",
    "Solver",
    "TamedEuler",
    "Tsit5",
    "Tuned",
    "UniPC",
    "solvers",
    "tune",
]


def solvers() -> dict[str, type[Solver]]:
    """Every solver that is listed above, by its name: what the command line offers and the test grids go through."""
    found = {name: globals()[name] for name in __all__}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Solver) and kind is not Solver
    }
