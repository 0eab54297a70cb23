"""Judging samples and runs: distances between sets of features, likelihood, loss, each with its error."""

from scorefield.evaluation.calibration import Calibration, calibrate
from scorefield.evaluation.digit_classifier import DigitClassifier, digit_classifier
from scorefield.evaluation.distances import gaussian_w2, score_error, sliced_w2, tv_on_grid, wasserstein_1d
from scorefield.evaluation.evaluate import Evaluation, compare, evaluate
from scorefield.evaluation.features import FeatureNetwork, Features, extract, open_features, reference_features
from scorefield.evaluation.metrics import Estimate, frechet, inception_score, kid, mean_of, precision_recall

__all__ = [
    "Calibration",
    "DigitClassifier",
    "Estimate",
    "Evaluation",
    "FeatureNetwork",
    "Features",
    "calibrate",
    "compare",
    "digit_classifier",
    "evaluate",
    "extract",
    "frechet",
    "gaussian_w2",
    "inception_score",
    "kid",
    "mean_of",
    "open_features",
    "precision_recall",
    "reference_features",
    "score_error",
    "sliced_w2",
    "tv_on_grid",
    "wasserstein_1d",
]
