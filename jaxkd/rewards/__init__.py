"""What the student is paid: factories of `RewardTransform`, chained in the order given."""

from jaxkd.rewards.combine import add, clip, replace, scale
from jaxkd.rewards.counts import count
from jaxkd.rewards.curiosity import disagreement, icm
from jaxkd.rewards.learned import Model, Predictor, learned, random_statistics
from jaxkd.rewards.normalise import normalise
from jaxkd.rewards.novelty import drnd, ensemble, rdd, rnd
from jaxkd.rewards.shaping import (
    potential_shaping,
    successor,
    teacher_log_ratio,
    teacher_reward,
)

__all__ = [
    "Model",
    "Predictor",
    "add",
    "clip",
    "count",
    "disagreement",
    "drnd",
    "ensemble",
    "icm",
    "learned",
    "normalise",
    "potential_shaping",
    "random_statistics",
    "rdd",
    "replace",
    "rnd",
    "scale",
    "successor",
    "teacher_log_ratio",
    "teacher_reward",
]
