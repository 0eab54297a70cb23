"""Judging samples and runs: distances between sets of features, likelihood, loss, each with its error."""

import sys
from types import ModuleType
from typing import Any

from scorefield.evaluate.digits import DigitClassifier, digit_classifier
from scorefield.evaluate.judge import Evaluation, compare, evaluate
from scorefield.evaluate.metrics import Estimate, frechet, inception_score, kid, mean_of, precision_recall
from scorefield.evaluate.networks import FeatureNetwork, Features, extract, open_features, reference_features

__all__ = [
    "DigitClassifier",
    "Estimate",
    "Evaluation",
    "FeatureNetwork",
    "Features",
    "compare",
    "digit_classifier",
    "evaluate",
    "extract",
    "frechet",
    "inception_score",
    "kid",
    "mean_of",
    "open_features",
    "precision_recall",
    "reference_features",
]


class _CallableModule(ModuleType):
    """`scorefield.evaluate` is this package and also the function."""

    def __call__(self, *args: Any, **options: Any) -> Evaluation:
        return evaluate(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
