"""What a preset says, as the keywords of a recipe.

Every function is (env, preset, num_updates) -> dict. A method names one of them as its `settings`,
or brings its own.
"""

from typing import Any

import jax
import optax

from jaxkd import check, rewards
from jaxkd.base import Env, UsageError
from jaxkd.envs.tasks import NAMED
from jaxkd.envs.tokens import TokenEnv, demonstrations
from jaxkd.presets.table import RANDOM_RETURNS, Preset
from jaxkd.returns import gae

_Q_EPOCHS, _Q_MINIBATCHES = 4, 8  # of Q-learning, see benchmarks/studies/q_teacher.py
_GUIDED_STEPS = 100  # the guide's in the first update of jump_start; 0 from half of the updates on
_MOST_ANSWERS = 50_000  # kept on the device
_MOST_COUNTED = 2**31 - 1  # a schedule counts minibatches in int32

Keywords = dict[str, Any]


def reinforcement(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of `ppo`."""
    scaled = rewards.normalise(preset.gamma, enlarge=preset.enlarge_reward)
    return dict(
        entropy=preset.entropy,
        learning_rate=_decaying(
            preset.learning_rate, num_updates, preset.num_epochs, preset.num_minibatches
        ),
        returns=gae(preset.gamma, preset.lambda_),
        rewards={"normalise": scaled} if preset.normalise_reward else None,
        unroll_length=preset.unroll_length,
        num_epochs=preset.num_epochs,
        num_minibatches=preset.num_minibatches,
    )


def imitation(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of `sequences.supervised`: right answers to so many problems as are seen once.

    Raises:
        UsageError: for an environment that is no problem in tokens.
    """
    environment = NAMED[env.name]() if env.name in NAMED else None
    if not isinstance(environment, TokenEnv):
        raise UsageError(f"{env.name!r} is no problem in tokens, so there are no right answers.")
    number = min(_MOST_ANSWERS, num_updates * env.num_envs)
    rate = _decaying(preset.learning_rate, num_updates, 1, 1)
    return dict(
        data=demonstrations(environment.task, jax.random.key(0), number),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        num_minibatches=1,
    )


def supervision(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of `distill`, for a student that learns from the teacher alone."""
    rate = _decaying(
        preset.student_learning_rate, num_updates, preset.student_epochs, preset.num_minibatches
    )
    return dict(
        optimizer=optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5)),
        unroll_length=preset.unroll_length,
        num_epochs=preset.student_epochs,
        num_minibatches=preset.num_minibatches,
    )


def q_learning(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of `pqn`: epsilon falls from 1 to 0.2 over the first fifth."""
    return dict(
        epsilon=optax.linear_schedule(1.0, 0.2, max(1, num_updates // 5)),
        learning_rate=_decaying(5e-4, num_updates, _Q_EPOCHS, _Q_MINIBATCHES),
        gamma=preset.gamma,
        lambda_=0.95,
        rewards={"normalise": rewards.normalise(preset.gamma)},
        unroll_length=preset.unroll_length,
        num_epochs=_Q_EPOCHS,
        num_minibatches=_Q_MINIBATCHES,
    )


def fading(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of `ppo` with a `weight` of the teacher's term, which is gone after three tenths."""
    weight = optax.linear_schedule(2.0, 0.0, max(1, num_updates * 3 // 10))
    return reinforcement(env, preset, num_updates) | dict(weight=weight)


def exploring(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of `exploration`, which makes its own returns."""
    keywords = reinforcement(env, preset, num_updates)
    del keywords["returns"]
    return keywords | dict(gamma=preset.gamma, lambda_=preset.lambda_)


def guided_exploring(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of `guided_exploration`: `exploring` with a `weight` that fades."""
    weight = fading(env, preset, num_updates)["weight"]
    return exploring(env, preset, num_updates) | dict(weight=weight)


def paid_by_teacher(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of Czarnecki's recipes, which make their own returns and rewards.

    The environment's reward is added: without it a student that can end its episodes does, see
    `methods.n_distillation`.
    """
    keywords = reinforcement(env, preset, num_updates)
    del keywords["returns"], keywords["rewards"]
    return keywords | dict(gamma=preset.gamma, reward=1.0)


def finetuning(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of `distil_then_finetune`: it switches at half of the updates."""
    switch, half_life = max(1, num_updates // 2), max(1, num_updates * 3 // 10)
    return reinforcement(env, preset, num_updates) | dict(switch=switch, half_life=half_life)


def graded(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of `qdagger`, which places the student between a random policy and the teacher.

    Raises:
        UsageError: for an environment whose returns are not known.
    """
    if preset.gate is None or env.name not in RANDOM_RETURNS:
        raise UsageError(
            "qdagger needs an expected return of the teacher; presets know it for "
            f"{', '.join(RANDOM_RETURNS)}, not for {env.name!r}."
        )
    expected = dict(teacher_return=preset.gate, random_return=RANDOM_RETURNS[env.name])
    return q_learning(env, preset, num_updates) | expected


def guided(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of `jump_start`: the guide's steps fall to 0 at half of the updates."""

    def horizon(update, episode_return):
        return _GUIDED_STEPS * (1 - 2 * update / num_updates)

    return q_learning(env, preset, num_updates) | dict(horizon=horizon)


def grouped(env: Env, preset: Preset, num_updates: int) -> Keywords:
    """Of `grpo`: every update plays whole episodes."""
    return supervision(env, preset, num_updates) | dict(unroll_length=env.max_steps)


def _decaying(rate: float, num_updates: int, num_epochs: int, num_minibatches: int):
    """A learning rate that falls linearly to 0 at the last minibatch."""
    check.number("learning_rate", rate, low=0)
    minibatches = num_updates * num_epochs * num_minibatches
    if minibatches > _MOST_COUNTED:
        raise UsageError(
            f"{num_updates} updates of {num_epochs} epochs x {num_minibatches} minibatches are "
            f"more than {_MOST_COUNTED}, which is what a schedule can count. Take fewer steps."
        )
    return optax.linear_schedule(rate, 0.0, minibatches)
