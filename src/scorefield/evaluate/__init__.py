"""Judging samples and runs: distances between sets of features, likelihood, loss, each with its error."""

from scorefield.evaluate.digits import DigitClassifier, digit_classifier

__all__ = ["DigitClassifier", "digit_classifier"]
