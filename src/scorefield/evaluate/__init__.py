"""Judging samples and runs: distances between sets of features, likelihood, loss, each with its error."""

from scorefield.evaluate.digits import DigitClassifier, digit_classifier
from scorefield.evaluate.metrics import Estimate, frechet, inception_score, kid, mean_of, precision_recall

__all__ = [
    "DigitClassifier",
    "Estimate",
    "digit_classifier",
    "frechet",
    "inception_score",
    "kid",
    "mean_of",
    "precision_recall",
]
