"""What the student is paid: factories of `RewardTransform`, chained in the order given."""

from jaxkd.rewards.combine import add, clip, replace, scale
from jaxkd.rewards.normalise import normalise
from jaxkd.rewards.shaping import potential_shaping, successor, teacher_reward

__all__ = ["add", "clip", "normalise", "potential_shaping", "replace", "scale", "successor", "teacher_reward"]
