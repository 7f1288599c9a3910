"""What the student is paid: factories of `RewardTransform`, chained in the order given."""

from jaxkd.rewards.normalise import normalise

__all__ = ["normalise"]
