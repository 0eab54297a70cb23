"""What is wrong with a model: its start, its score at each noise level, its flow beside its SDE, memory, samplers, ways."""

from scorefield.diagnose.calibration import Level, Memory, calibration, curl, memory
from scorefield.diagnose.chapter import Chapter
from scorefield.diagnose.gap import FlowGap, flow_gap, residual_by_level
from scorefield.diagnose.precision import Rounding, rounding
from scorefield.diagnose.prior import fit_prior
from scorefield.diagnose.report import Diagnosis, report
from scorefield.diagnose.samplers import SamplerTable, compare_samplers
from scorefield.diagnose.time import DiffusionTime, diffusion_time
from scorefield.diagnose.trajectory import Trajectory, trajectory
from scorefield.diagnose.trust import LikelihoodTrust, PosteriorTrust, likelihood_trust, posterior_trust
from scorefield.fokker_planck import fokker_planck_residual

__all__ = [
    "Chapter",
    "Diagnosis",
    "DiffusionTime",
    "FlowGap",
    "Level",
    "LikelihoodTrust",
    "Memory",
    "PosteriorTrust",
    "Rounding",
    "SamplerTable",
    "Trajectory",
    "calibration",
    "compare_samplers",
    "curl",
    "diffusion_time",
    "fit_prior",
    "flow_gap",
    "fokker_planck_residual",
    "likelihood_trust",
    "memory",
    "posterior_trust",
    "report",
    "residual_by_level",
    "rounding",
    "trajectory",
]
