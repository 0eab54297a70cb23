"""Guidance: functions from model to model that change the score by a condition, such as a class."""

from scorefield.guide.classifier import Classifier, ClassifierGuidance, accuracy, classifier_loss
from scorefield.guide.classifier_free import Autoguidance, ClassifierFree
from scorefield.guide.wrapped import Wrapped

__all__ = [
    "Autoguidance",
    "Classifier",
    "ClassifierFree",
    "ClassifierGuidance",
    "Wrapped",
    "accuracy",
    "classifier_loss",
]
