"""What the student is paid: factories of `RewardTransform`, chained in the order given."""

from jaxkd.rewards.combine import add, clip, replace, scale
from jaxkd.rewards.intrinsic import (
    Predictor,
    count,
    disagreement,
    drnd,
    ensemble,
    random_statistics,
    rdd,
    rnd,
)
from jaxkd.rewards.normalise import normalise
from jaxkd.rewards.shaping import potential_shaping, successor, teacher_reward

__all__ = [
    "Predictor",
    "add",
    "clip",
    "count",
    "disagreement",
    "drnd",
    "ensemble",
    "normalise",
    "potential_shaping",
    "random_statistics",
    "rdd",
    "replace",
    "rnd",
    "scale",
    "successor",
    "teacher_reward",
]
