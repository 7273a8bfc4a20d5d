"""Measures of generated pictures, one file a judge. None of them knows how the pictures were made."""

from immunity.metrics.base import Metric, Preprocessing
from immunity.metrics.classification import Accuracy, Classifier, Probability
from immunity.metrics.clip import ClipJudge, ClipScore, ClipSimilarity, ZeroShot
from immunity.metrics.dino import DinoJudge, DinoSimilarity
from immunity.metrics.lpips import LpipsJudge, LpipsSimilarity
from immunity.metrics.nudity import NudeNetJudge, Nudity
from immunity.metrics.perceptual import PerceptualJudge, PerceptualSimilarity
from immunity.metrics.world import WorldJudges

__all__ = [
    "Accuracy",
    "Classifier",
    "ClipJudge",
    "ClipScore",
    "ClipSimilarity",
    "DinoJudge",
    "DinoSimilarity",
    "LpipsJudge",
    "LpipsSimilarity",
    "Metric",
    "NudeNetJudge",
    "Nudity",
    "PerceptualJudge",
    "PerceptualSimilarity",
    "Preprocessing",
    "Probability",
    "WorldJudges",
    "ZeroShot",
]
