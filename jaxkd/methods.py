"""Recipes named after papers: `distill`, `ppo` or `pqn` with other arguments, and their keywords.

All take (env, student, teacher) and return an `Algorithm` for
`run(algorithm, key, num_updates, teacher_params)`. Where actions are discrete, its metrics have
"loss/agreement": the share of rows where the student's greedy action is the teacher's.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses, networks, recipes, rewards
from jaxkd.base import Algorithm, Discrete, Env, Outputs, Policy, RewardTransform
from jaxkd.behavior import guide_then_student, mixture, teacher_acts
from jaxkd.losses import watch
from jaxkd.memory import ring
from jaxkd.returns import gae, group_relative, monte_carlo
from jaxkd.returns import scale as scaled_returns

Weight = float | jax.Array | Callable  # a number, or a schedule `update -> number`


def _given(keywords: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """The recipe's own keywords, unless the user gives others."""
    return defaults | keywords


def _same_action(student: Outputs, batch: Any) -> jax.Array:
    return student.policy.mode() == batch.teacher.policy.mode()


def _watched(recipe: Callable) -> Callable:
    """`recipe`, which also reports how often student and teacher would do the same."""

    @wraps(recipe)
    def watching(env, student, teacher=None, *, losses=None, **keywords):
        if teacher is not None and isinstance(getattr(env, "action_space", None), Discrete):
            losses = {**(losses or {}), "agreement": watch(_same_action)}
        return recipe(env, student, teacher, losses=losses, **keywords)

    return watching


distill, ppo, pqn = map(_watched, (recipes.distill, recipes.ppo, recipes.pqn))


def _first_update(update):
    return (update == 0).astype(jnp.float32)


# --- supervised -------------------------------------------------------------------------------


def policy_distillation(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    temperature: float | jax.Array = 1.0,
    capacity: int = 10,
    **keywords,
) -> Algorithm:
    """KL to a sharpened teacher that acts, from a replay memory (Rusu et al. 2015).

    Args:
        temperature: of the teacher only, no factor T^2; 0.01 for one whose logits are Q-values.
        capacity: rollouts in the memory.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = policy_distillation(env, small, big, capacity=2)
    """
    keywords = _given(
        keywords, losses={"kl": losses.forward_kl()}, behavior=teacher_acts(), memory=ring(capacity)
    )
    return distill(env, student, networks.temper(teacher, temperature), **keywords)


def dagger(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    beta: Weight = _first_update,
    capacity: int = 32,
    **keywords,
) -> Algorithm:
    """The teacher labels what the student visits, learnt from the aggregate (Ross et al. 2011).

    Args:
        beta: probability that the teacher acts; default 1 in the first update, then 0.
        capacity: rollouts in the aggregate.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = dagger(env, small, big, capacity=2)
    """
    return distill(
        env,
        student,
        teacher,
        **_given(
            keywords,
            losses={"kl": losses.forward_kl()},
            behavior=mixture(beta),
            memory=ring(capacity),
        ),
    )


def on_policy_distillation(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    beta: Weight | None = None,
    temperature: float | jax.Array = 1.0,
    **keywords,
) -> Algorithm:
    """The student acts and is corrected in every state by a divergence (Agarwal et al. 2024, GKD).

    Args:
        beta: of the generalised Jensen-Shannon divergence, normalised: 0 forward KL, 1 reverse KL;
            None: forward KL itself.
        temperature: of both policies in it.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = on_policy_distillation(env, small, big, beta=0.5)
    """
    divergence = losses.forward_kl(temperature)
    if beta is not None:
        divergence = losses.jsd(beta, temperature=temperature, normalise=True)
    return distill(env, student, teacher, **_given(keywords, losses={"kl": divergence}))


# --- with reinforcement learning --------------------------------------------------------------


def kickstarting(
    env: Env, student: Policy, teacher: Policy, *, weight: Weight = 1.0, **keywords
) -> Algorithm:
    """PPO with a KL to the teacher that should fade (Schmitt et al. 2018).

    Args:
        weight: of the KL; reduce it quickly, such as `optax.linear_schedule(2.0, 0.0, 100)`.
            Constant, it holds the student at its teacher.

    >>> import jaxkd, optax
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> both = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = kickstarting(env, *both, weight=optax.linear_schedule(2.0, 0.0, 100))
    """
    return ppo(
        env, student, teacher, losses={"kl": losses.scale(weight, losses.forward_kl())}, **keywords
    )


def proximal_policy_distillation(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    weight: Weight = 1.0,
    clip: float | jax.Array = 0.2,
    **keywords,
) -> Algorithm:
    """PPO with a KL to the teacher times max(ratio, 1 - clip) (Spigler 2025).

    Args:
        weight: of the KL; larger is faster, smaller ends better.
        clip: of PPO's ratio and of this one.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = proximal_policy_distillation(env, small, big)
    """
    term = losses.scale(weight, losses.proximal(clip, losses.forward_kl()))
    return ppo(
        env, student, teacher, **_given(keywords, clip=clip, entropy=0.0, losses={"kl": term})
    )


def qdagger(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    teacher_return: float | jax.Array,
    random_return: float | jax.Array = 0.0,
    temperature: float | jax.Array = 1.0,
    weight: Weight = 3.0,
    **keywords,
) -> Algorithm:
    """Q-learning with a KL to the teacher that fades with success (Agarwal et al. 2022).

    The paper's term is the cross-entropy, which has the same gradient.

    Args:
        teacher_return, random_return: between which the student's own return is placed: 1 at the
            random one, 0 at the teacher's.
        temperature: of both softmaxes; small for Q-values.
        weight: at a student no better than random.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = (jaxkd.networks.mlp(env, (width,), layer_norm=True) for width in (4, 16))
    >>> kd = qdagger(env, small, big, teacher_return=500.0, random_return=20.0)
    """
    gate = losses.performance_gate(teacher_return=teacher_return, random_return=random_return)
    # `forward_kl` has the factor T^2, the paper has none.
    term = losses.scale(1 / jnp.square(temperature), losses.forward_kl(temperature))
    return pqn(
        env,
        student,
        teacher,
        losses={"kl": losses.scale(weight, losses.gate(gate, term))},
        **keywords,
    )


def grpo(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    reference: Weight = 0.04,
    clip: float | jax.Array = 0.2,
    standardise: bool = True,
    **keywords,
) -> Algorithm:
    """Episodes compared in groups of equal starts, the teacher as reference (Shao et al. 2024).

    No critic is learnt.

    Args:
        env: with `group_size=` above 1 and a time limit; every update plays whole episodes from a
            reset.
        reference: weight of KL(student || teacher), in closed form.
        standardise: False is Dr.GRPO (Liu et al. 2025), without the groups' standard deviation and
            over a constant, the rollout's length, in place of the episodes' lengths.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4, group_size=2, max_steps=8)
    >>> small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = grpo(env, small, big)
    """
    terms = {
        "policy": losses.ppo_clip(clip, normalise=False),
        "reference": losses.scale(reference, losses.reverse_kl()),
    }
    rows = "mean" if standardise else "constant"
    returns = group_relative(env.group_size, standardise=standardise, rows=rows)
    return distill(
        env,
        student,
        teacher,
        **_given(keywords, losses=terms, returns=returns, unroll_length=env.max_steps),
    )


def distil_then_finetune(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    switch: int,
    half_life: float | jax.Array = 20.0,
    **keywords,
) -> Algorithm:
    """Distillation, then PPO whose KL to the teacher fades (Baker et al. 2022, VPT).

    The critic learns from the start. One that starts at random destroys a good policy; here it has
    judged the student's own returns for `switch` updates before its advantages count.

    Args:
        switch: updates of distillation.
        half_life: of the KL's weight after the switch, in updates.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = distil_then_finetune(env, small, big, switch=50)
    """
    after = lambda update: (update >= switch).astype(jnp.float32)
    weight = lambda update: 0.5 ** (jnp.maximum(update - switch, 0) / half_life)
    clip = losses.ppo_clip(keywords.pop("clip", 0.2))
    terms = {"policy": losses.scale(after, clip), "kl": losses.scale(weight, losses.forward_kl())}
    return ppo(env, student, teacher, **_given(keywords, losses=terms, entropy=0.0))


def jump_start(
    env: Env, student: Policy, teacher: Policy, *, horizon: float | Callable, **keywords
) -> Algorithm:
    """Q-learning while the teacher plays each episode's first steps (Uchendu et al. 2022, JSRL).

    Args:
        horizon: the teacher's steps, a number or `(update, episode_return) -> steps`; it should
            shrink to 0.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = (jaxkd.networks.mlp(env, (width,), layer_norm=True) for width in (4, 16))
    >>> kd = jump_start(env, small, big, horizon=lambda update, episode_return: 100 - update)
    """
    return pqn(env, student, teacher, behavior=guide_then_student(horizon), **keywords)


# --- paid for exploring -----------------------------------------------------------------------
# The student needs a value head for the bonus: `extra=("bonus",)` in its network.


def exploration(
    env: Env,
    student: Policy,
    teacher: Policy | None = None,
    *,
    bonus: RewardTransform | None = None,
    gamma: float | jax.Array = 0.99,
    lambda_: float | jax.Array = 0.95,
    **keywords,
) -> Algorithm:
    """PPO with a bonus for novelty, a stream of its own (Burda et al. 2018, RND).

    The bonus has its own value head, and its return runs through resets.

    Args:
        bonus: of stream "bonus"; default `rewards.rnd(stream="bonus")`.
        gamma, lambda_: of the environment's reward; the bonus has 0.99 and 0.95. The environment's
            advantage counts twice.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("MountainCar-v0", num_envs=4)
    >>> explorer = exploration(env, jaxkd.networks.mlp(env, (8,), extra=("bonus",)))
    """
    further_rewards = keywords.pop("rewards", None) or {}
    further_losses = keywords.pop("losses", None) or {}
    bonuses = {
        "bonus": bonus or rewards.rnd(stream="bonus"),
        "scale": rewards.normalise(0.99, episodic=False, stream="bonus"),
    }
    returns = {"": scaled_returns(2.0, gae(gamma, lambda_)), "bonus": gae(0.99, episodic=False)}
    terms = {"bonus value": losses.scale(0.5, losses.td_mse(stream="bonus"))} | further_losses
    return ppo(
        env,
        student,
        teacher,
        **_given(keywords, rewards=further_rewards | bonuses, returns=returns, losses=terms),
    )


def guided_exploration(
    env: Env, student: Policy, teacher: Policy, *, weight: Weight = 1.0, **keywords
) -> Algorithm:
    """`exploration` with a KL to a weak or narrow teacher.

    It leads where it knows the way, the bonus takes over from there.

    Args:
        weight: of the KL; should fade, such as `optax.linear_schedule(2.0, 0.0, 100)`, or gate it
            where the teacher knows nothing:
            `losses={"kl": losses.gate(where, losses.forward_kl())}` replaces the term.
        keywords: of `exploration`.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("MountainCar-v0", num_envs=4)
    >>> student = jaxkd.networks.mlp(env, (8,), extra=("bonus",))
    >>> kd = guided_exploration(env, student, jaxkd.networks.mlp(env, (16,)))
    """
    terms = {"kl": losses.scale(weight, losses.forward_kl())} | (keywords.pop("losses", None) or {})
    return exploration(env, student, teacher, losses=terms, **keywords)


def jump_start_exploration(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    horizon: float | Callable,
    bonus: RewardTransform | None = None,
    **keywords,
) -> Algorithm:
    """`jump_start` whose student is paid for novelty once it acts.

    There is one reward, because a Q network has one value.

    Args:
        horizon: as in `jump_start`.
        bonus: of the environment's stream; default `rewards.rnd(0.1)`.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("MountainCar-v0", num_envs=4)
    >>> small, big = (jaxkd.networks.mlp(env, (width,), layer_norm=True) for width in (4, 16))
    >>> shrinking = lambda update, episode_return: 100 - update
    >>> kd = jump_start_exploration(env, small, big, horizon=shrinking)
    """
    further_rewards = keywords.pop("rewards", None) or {}
    chained = further_rewards | {"bonus": bonus or rewards.rnd(0.1)}
    return jump_start(env, student, teacher, horizon=horizon, rewards=chained, **keywords)


# --- Czarnecki et al. 2019: `reward` weighs the environment's reward --------------------------


def teacher_distillation(env: Env, student: Policy, teacher: Policy, **keywords) -> Algorithm:
    """Cross-entropy to a teacher that acts; the student never does (Czarnecki et al. 2019).

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = teacher_distillation(env, small, big)
    """
    return distill(
        env,
        student,
        teacher,
        **_given(keywords, losses={"kl": losses.cross_entropy()}, behavior=teacher_acts()),
    )


def n_distillation(env: Env, student: Policy, teacher: Policy, **keywords) -> Algorithm:
    """Cross-entropy on the student's states, as a true gradient (Czarnecki et al. 2019).

    A reward for the next state's cross-entropy makes it one. The objective sums a cost over the
    episode, so without the environment's reward a student that can end its episodes learns to (in
    CartPole it drops the pole). Give a `reward` where episodes end in failure.

    Args:
        keywords: `reward` (0), weight of the environment's reward, `gamma` (0.99), and those of
            `ppo`.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = n_distillation(env, small, big, reward=1.0)
    """

    def measure(ours, theirs):
        return theirs.policy.cross_entropy(ours.policy)

    return _paid_by_teacher(
        env,
        student,
        teacher,
        partial(rewards.successor, measure),
        {"kl": losses.cross_entropy()},
        **keywords,
    )


def expected_entropy_regularised(
    env: Env, student: Policy, teacher: Policy, **keywords
) -> Algorithm:
    """Reverse cross-entropy on the student's states, a true gradient (Czarnecki et al. 2019).

    A reward for the next state's reverse cross-entropy makes it one.

    Args:
        keywords: as in `n_distillation`, whose warning holds here too.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = expected_entropy_regularised(env, small, big, reward=1.0)
    """

    def measure(ours, theirs):
        return ours.policy.cross_entropy(theirs.policy)

    return _paid_by_teacher(
        env,
        student,
        teacher,
        partial(rewards.successor, measure),
        {"kl": losses.reverse_cross_entropy()},
        **keywords,
    )


def entropy_regularised(env: Env, student: Policy, teacher: Policy, **keywords) -> Algorithm:
    """Reward log pi_T(a | s) for the student's actions (Czarnecki et al. 2019).

    Nothing else is taken of the teacher.

    Args:
        keywords: as in `n_distillation`.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = entropy_regularised(env, small, big)
    """
    return _paid_by_teacher(
        env, student, teacher, lambda gamma: rewards.teacher_reward(), {}, **keywords
    )


def teacher_value_reward(env: Env, student: Policy, teacher: Policy, **keywords) -> Algorithm:
    """Reward V_T(s') - V_T(s), progress in the teacher's eyes (Czarnecki et al. 2019).

    Args:
        keywords: as in `n_distillation`, but `reward` is 1 unless given.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (16,))
    >>> kd = teacher_value_reward(env, small, big)
    """
    return _paid_by_teacher(
        env,
        student,
        teacher,
        lambda gamma: rewards.potential_shaping(1.0),
        {},
        **_given(keywords, reward=1.0),
    )


def _paid_by_teacher(
    env, student, teacher, pay, terms, *, reward: Weight = 0.0, gamma=0.99, **keywords: Any
) -> Algorithm:
    """PPO on Monte-Carlo returns of reward * environment + what the teacher pays.

    Advantages are not normalised: their size is the objective's.
    """
    chained = {"environment": rewards.scale(reward), "teacher": pay(gamma=gamma)}
    terms = {"policy": losses.ppo_clip(normalise=False)} | terms
    return ppo(
        env,
        student,
        teacher,
        **_given(keywords, losses=terms, rewards=chained, returns=monte_carlo(gamma), entropy=0.0),
    )
