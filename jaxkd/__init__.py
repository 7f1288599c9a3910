"""Small students from big teachers: distillation and reinforcement learning in one compiled JAX function."""

from jaxkd import behavior, distributions, envs, losses, memory, networks, returns, rewards
from jaxkd.base import (
    Algorithm,
    ArtifactError,
    Behavior,
    Env,
    LossTerm,
    Memory,
    Outputs,
    Policy,
    Returns,
    RewardTransform,
    UsageError,
)
from jaxkd.evaluate import actor_size, evaluate, interval, iqm
from jaxkd.learner import describe
from jaxkd.recipes import distill, ppo
from jaxkd.run import lanes, run, seeds, stream

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "ArtifactError",
    "Behavior",
    "Env",
    "LossTerm",
    "Memory",
    "Outputs",
    "Policy",
    "Returns",
    "RewardTransform",
    "UsageError",
    "actor_size",
    "behavior",
    "describe",
    "distill",
    "distributions",
    "envs",
    "evaluate",
    "interval",
    "iqm",
    "lanes",
    "losses",
    "memory",
    "networks",
    "ppo",
    "returns",
    "rewards",
    "run",
    "seeds",
    "stream",
]
