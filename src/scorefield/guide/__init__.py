"""Guidance: functions from model to model that change the score by a condition, such as a class."""

from scorefield.guide.classifier import Classifier, ClassifierGuidance, accuracy, classifier_loss
from scorefield.guide.classifier_free import Autoguidance, ClassifierFree
from scorefield.guide.limits import Clamp, Threshold
from scorefield.guide.score_error import ScoreError
from scorefield.model import Guided

__all__ = [
    "Autoguidance",
    "Clamp",
    "Classifier",
    "ClassifierFree",
    "ClassifierGuidance",
    "Guided",
    "ScoreError",
    "Threshold",
    "accuracy",
    "classifier_loss",
]
