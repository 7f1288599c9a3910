"""Named methods: each is the learner with other arguments."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd import check, networks
from jaxkd.base import Algorithm, Env, LossTerm, Policy, Returns
from jaxkd.behavior import epsilon_greedy
from jaxkd.learner import learner as distill
from jaxkd.losses import entropy as entropy_bonus
from jaxkd.losses import ppo_clip, q_mse, scale, td_mse
from jaxkd.optimize import component_key
from jaxkd.returns import gae, q_lambda

__all__ = ["co_distill", "distill", "ppo", "pqn"]

_DEFAULT_RETURNS = gae(0.99, 0.95)
_DEFAULT_EPSILON = optax.linear_schedule(1.0, 0.05, 50)


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
    """Proximal policy optimisation (Schulman et al. 2017).

    With a teacher and a distillation term among `losses` it is kickstarting.

    Args:
        env, policy: where and who; give the policy a value torso of its own (`separate=True`).
        clip: of the ratio. The value loss is not clipped: returns are often far larger than a
            ratio's range.
        value, entropy: weights of those terms (numbers or schedules `update -> weight`).
        learning_rate: of Adam behind a gradient clip at norm 0.5; a number, or a schedule by
            minibatch.
        losses: further terms by name; one called "policy", "value" or "entropy" replaces PPO's own.
        optimizer: instead of that Adam.
        keywords: of `distill` (rewards, behavior, unroll_length, num_minibatches, ...).

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> teacher = ppo(env, jaxkd.networks.mlp(env, (64, 64), separate=True))
    """
    check.number("learning_rate", learning_rate, low=0)
    terms: dict[str, LossTerm | Callable] = {
        "policy": ppo_clip(clip),
        "value": scale(value, td_mse()),
        "entropy": scale(entropy, entropy_bonus()),
    }
    adam = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(learning_rate, eps=1e-5))
    terms |= losses or {}
    return distill(
        env,
        policy,
        teacher,
        losses=terms,
        returns=returns,
        optimizer=optimizer or adam,
        num_epochs=num_epochs,
        **keywords,
    )


def pqn(
    env: Env,
    policy: Policy,
    teacher: Policy | None = None,
    *,
    gamma: float | jax.Array = 0.99,
    lambda_: float | jax.Array = 0.65,
    epsilon: float | jax.Array | Callable = _DEFAULT_EPSILON,
    learning_rate: float | jax.Array | Callable = 5e-4,
    losses: Mapping[str, LossTerm | Callable] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    num_epochs: int = 4,
    **keywords: Any,
) -> Algorithm:
    """Parallelised Q-learning (Gallici et al. 2025, PQN).

    No replay and no target network; layer normalisation instead. The logits of `policy` become
    Q-values (`networks.q`). Its mode is the greedy policy; as a teacher for a KL it is
    `networks.temper(networks.q(policy), 0.01)` (Rusu et al. 2015).

    Args:
        env, policy: where and who; discrete actions, a network with `layer_norm=True`.
        gamma, lambda_: of Peng's Q(lambda).
        epsilon: of the random actions; a number, or a schedule `update -> epsilon`.
        learning_rate: of RAdam behind a gradient clip at norm 10; a number, or a schedule by
            minibatch.
        losses: further terms by name; one called "q" replaces the squared TD error.
        optimizer: instead of that RAdam.
        keywords: of `distill` (rewards, unroll_length, num_minibatches, ...; behavior and returns
            replace those above).

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> network = jaxkd.networks.mlp(env, (128, 128), activation=jax.nn.relu, layer_norm=True)
    >>> teacher = pqn(env, network)
    """
    check.number("learning_rate", learning_rate, low=0)
    terms: dict[str, LossTerm | Callable] = {"q": q_mse()} | dict(losses or {})
    radam = optax.chain(optax.clip_by_global_norm(10.0), optax.radam(learning_rate))
    keywords = dict(behavior=epsilon_greedy(epsilon), returns=q_lambda(gamma, lambda_)) | keywords
    return distill(
        env,
        networks.q(policy),
        teacher,
        losses=terms,
        optimizer=optimizer or radam,
        num_epochs=num_epochs,
        **keywords,
    )


class Pair(NamedTuple):
    """State of `co_distill`."""

    student: Any
    teacher: Any
    teaching: Any  # the params that the student learns from
    best: jax.Array  # float32 [], the teacher's return when it had them

    @property
    def params(self) -> Any:
        """The student's, as in every other state."""
        return self.student.params


def co_distill(student: Algorithm, teacher: Algorithm, *, best_so_far: bool = False) -> Algorithm:
    """A student of a teacher that is still learning.

    In every update first the teacher makes its step, then the student.

    Args:
        student: a distillation, whose step takes the teacher's params.
        teacher: an algorithm without inputs, such as `ppo`, of the policy that `student` was given
            as its teacher.
        best_so_far: the teacher's params are those of its highest return so far, not today's (Rusu
            et al. 2015, online distillation).

    Returns:
        an Algorithm for `run(algorithm, key, num_updates)`; metrics are the student's, the
        teacher's under "teacher/".

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> big, small = jaxkd.networks.mlp(env, (16,)), jaxkd.networks.mlp(env, (4,))
    >>> learning = distill(env, small, big, losses={"kl": jaxkd.losses.forward_kl()})
    >>> both = co_distill(learning, ppo(env, big))
    >>> sorted(jaxkd.run(both, jax.random.key(0), 2)[1])[-1:]
    ['teacher/return']
    """

    for name, algorithm in (("student", student), ("teacher", teacher)):
        check.kind(name, algorithm, Algorithm, "an Algorithm (jaxkd.distill, jaxkd.ppo)")

    def init(key):
        check.key(key)
        pupil = student.init(component_key(key, "student"))
        learning = teacher.init(component_key(key, "teacher"))
        return Pair(pupil, learning, teaching=learning.params, best=jnp.float32(-jnp.inf))

    def step(state):
        learning, of_teacher = teacher.step(state.teacher)
        # "return" is -inf before the first episode ends: nothing is better then.
        best_yet = of_teacher["return"] > state.best
        taken = best_yet | (not best_so_far)
        teaching = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old), learning.params, state.teaching
        )
        best = jnp.where(best_yet, of_teacher["return"], state.best)
        pupil, metrics = student.step(state.student, teaching)
        renamed = {f"teacher/{name}": value for name, value in of_teacher.items()}
        return Pair(pupil, learning, teaching, best), metrics | renamed

    return Algorithm(init, step, student.description)
