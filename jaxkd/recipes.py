"""Named methods: each is the learner with other arguments."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from jaxkd.base import Algorithm, Env, LossTerm, Policy, Returns
from jaxkd.learner import learner as distill
from jaxkd.losses import entropy as entropy_bonus
from jaxkd.losses import ppo_clip, scale, td_mse
from jaxkd.returns import gae

__all__ = ["distill", "ppo"]

_DEFAULT_RETURNS = gae(0.99, 0.95)


def ppo(
    env: Env,
    policy: Policy,
    teacher: Policy | None = None,
    *,
    clip: float | jax.Array = 0.2,
    value: float | jax.Array | Callable = 0.5,
    entropy: float | jax.Array | Callable = 0.01,
    learning_rate: float | jax.Array | Callable = 3e-3,
    losses: Mapping[str, LossTerm | Callable] | None = None,
    returns: Returns | dict[str, Returns] = _DEFAULT_RETURNS,
    optimizer: optax.GradientTransformation | None = None,
    num_epochs: int = 4,
    **keywords: Any,
) -> Algorithm:
    """Proximal policy optimisation (Schulman et al. 2017); with a teacher and a distillation term among `losses`, kickstarting.

    Args:
        env, policy: where and who; give the policy a value torso of its own (`separate=True`).
        clip: of the ratio. The value loss is not clipped: returns are often far larger than a ratio's range.
        value, entropy: weights of those terms (numbers or schedules `update -> weight`).
        learning_rate: of Adam behind a gradient clip at norm 0.5; a number, or a schedule by minibatch.
        losses: further terms by name; one called "policy", "value" or "entropy" replaces PPO's own.
        optimizer: instead of that Adam.
        keywords: of `distill` (rewards, behavior, unroll_length, num_minibatches, ...).

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> teacher = ppo(env, jaxkd.networks.mlp(env, (64, 64), separate=True))
    """
    terms: dict[str, LossTerm | Callable] = {
        "policy": ppo_clip(clip),
        "value": scale(value, td_mse()),
        "entropy": scale(entropy, entropy_bonus()),
    }
    adam = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(learning_rate, eps=1e-5))
    terms |= losses or {}
    return distill(env, policy, teacher, losses=terms, returns=returns, optimizer=optimizer or adam, num_epochs=num_epochs, **keywords)
