"""What PaPr must beat: selections by chance, by place and by the host's own tokens; small pictures.

Scorers are a `proposal=` for `papr.prune`; `papr.compare.rivals` sets them all side by side.
"""

from papr.baselines.norm import norm_scores as norm_scores
from papr.baselines.resolution import LowerResolution as LowerResolution
from papr.baselines.resolution import lower_resolution as lower_resolution
from papr.baselines.scores import Scores as Scores
from papr.baselines.scores import centre_scores as centre_scores
from papr.baselines.scores import oracle_scores as oracle_scores
from papr.baselines.scores import random_scores as random_scores
from papr.baselines.scores import stride_scores as stride_scores

__all__ = [
    "LowerResolution",
    "Scores",
    "centre_scores",
    "lower_resolution",
    "norm_scores",
    "oracle_scores",
    "random_scores",
    "stride_scores",
]
