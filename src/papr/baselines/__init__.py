"""What PaPr must beat: selections by chance, by place and by the host's own tokens."""

from papr.baselines.scores import Scores as Scores
from papr.baselines.scores import centre_scores as centre_scores
from papr.baselines.scores import random_scores as random_scores

__all__ = ["Scores", "centre_scores", "random_scores"]
