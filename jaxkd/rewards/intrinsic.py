"""What is paid for novelty: prediction errors, disagreement and counts. Transforms that learn train themselves, after their bonus is computed.

Legend of shapes: `T` time, `B` environments, `R = T B` rows, `D` numbers of a flat observation, `F` features, `N` networks of a set.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxkd import check, moments
from jaxkd.base import Discrete, Env, RewardTransform, UsageError
from jaxkd.cpu import grad
from jaxkd.losses.combine import at
from jaxkd.moments import Moments
from jaxkd.networks.initial import orthogonal
from jaxkd.rewards.combine import add, check_function

_CLIP = 5.0  # of standardised observations (Burda et al. 2018)
_BLOCK = 1024  # rows that pass through a set of N networks at once: memory does not grow with N R
_SMALL = 1e-6  # of a variance of targets, in the reference code too


class Novelty(NamedTuple):
    """What a bonus is made of. A row is a pair: an observation [D], and the teacher's features [F] or ()."""

    init: Callable  # (key, row spec) -> (fixed, params)
    bonus: Callable  # (fixed, params, rows [R]) -> [R]
    loss: Callable  # (key, fixed, params, rows [M]) -> []


class Predictor(NamedTuple):
    """The networks of a bonus, relu MLPs, and how the one that learns is trained: after the bonus of an update is computed,
    `num_minibatches` steps of Adam, each on `batch_size` random rows of the rollout, however many environments there are.

    >>> rnd(predictor=Predictor(hidden=(128, 128), learning_rate=3e-4)).stream
    ''
    """

    hidden: tuple[int, ...] = (
        64,
        64,
    )  # widths; a fixed target has one hidden layer less, but at least one
    features: int = 64  # F
    learning_rate: float | jax.Array = 1e-3
    batch_size: int = 256
    num_minibatches: int = 2
    normalise: bool = (
        True  # observations are standardised by their running moments and clipped to [-5, 5]
    )
    statistics: Moments | None = (
        None  # of observations, to begin with (`random_statistics`); they go on running
    )


_PREDICTOR = Predictor()


def rnd(
    coef: float | jax.Array | Callable = 1.0,
    *,
    target: str = "random",
    terminal: bool = True,
    predictor: Predictor = _PREDICTOR,
    stream: str = "",
) -> RewardTransform:
    """r + coef mean_F (f(s') - t(s'))^2, the error of a predictor f of features t: random network distillation (Burda et al. 2018).

    s' is the true successor. The error is small where s' is like what f was trained on. As in the paper, give it a stream of its
    own: `normalise(gamma, episodic=False, stream=...)` behind it, `gae(gamma, episodic=False)` and a value head for the
    stream, and `returns.scale(2.0, ...)` for the environment's.

    Args:
        coef: a number or a schedule `update -> coef`.
        target: "random" a fixed random network, "teacher" the teacher's features at s'.
        terminal: False pays nothing for a state that terminates the episode.
        predictor: sizes and training of f.
        stream: the reward it is added to; a new name starts a stream of its own at 0.

    >>> import jaxkd
    >>> rewards = {"rnd": rnd(stream="novelty"), "scale": jaxkd.rewards.normalise(0.99, episodic=False, stream="novelty")}
    """
    if target not in ("random", "teacher"):
        raise UsageError(f"target must be 'random' or 'teacher', got {target!r}.")
    teacher = target == "teacher"

    def init(key, row):
        keys = jax.random.split(key)
        if teacher:
            return (), _init(keys[1], (row[0].shape[-1], *predictor.hidden, row[1].shape[-1]))
        return _init(keys[0], _target(predictor, row)), _init(keys[1], _learner(predictor, row))

    def error(fixed, params, rows):
        wanted = rows[1] if teacher else _apply(fixed, rows[0])
        return jnp.mean(jnp.square(_apply(params, rows[0]) - wanted), axis=-1)

    novelty = Novelty(
        init, error, lambda key, fixed, params, rows: jnp.mean(error(fixed, params, rows))
    )
    return _paid(novelty, coef, predictor, terminal, stream, teacher=teacher)


def drnd(
    coef: float | jax.Array | Callable = 1.0,
    *,
    alpha: float | jax.Array = 0.9,
    num_targets: int = 10,
    estimator: str = "mean_first",
    terminal: bool = True,
    predictor: Predictor = _PREDICTOR,
    stream: str = "",
) -> RewardTransform:
    """r + coef (alpha b1 + (1 - alpha) b2), distributional random network distillation (Yang et al. 2024).

    The predictor f learns one of N random targets, drawn anew for every row. With mu and B the mean and the mean square over targets,
    b1 = |f - mu|^2 falls to 0 and b2 = sqrt(y) to 1 / sqrt(n) after n visits: y = (f^2 - mu^2) / (B - mu^2) is an unbiased
    estimate of 1 / n. b1 is a mean over features here, as in `rnd`, not their sum.

    Args:
        alpha: share of b1, in [0, 1].
        num_targets: N.
        estimator: of b2. "mean_first" sqrt(clip(mean_F y, 0, 1)), because y is unbiased only before any other operation; "offline"
            mean_F sqrt(clip(|y|, 1e-3, 1)) and "online" sum_F sqrt(clip(|y|, 1e-6, 1)) are the reference codes'.
        coef, terminal, predictor, stream: as in `rnd`.

    >>> drnd(0.5, stream="novelty").stream
    'novelty'
    """
    check.number("alpha", alpha, low=0, high=1)
    if estimator not in _ESTIMATORS:
        raise UsageError(
            f"estimator must be one of {', '.join(map(repr, _ESTIMATORS))}, got {estimator!r}."
        )

    def init(key, row):
        keys = jax.random.split(key)
        targets = jax.vmap(lambda key: _init(key, _target(predictor, row)))(
            jax.random.split(keys[0], num_targets)
        )
        return targets, _init(keys[1], _learner(predictor, row))

    def bonus(targets, params, rows):
        def one(x):
            found = _apply(params, x)
            wanted = _each(targets, x)
            mu, square = jnp.mean(wanted, axis=0), jnp.mean(jnp.square(wanted), axis=0)
            b2 = _ESTIMATORS[estimator](visits_estimate(found, mu, square))
            return alpha * jnp.mean(jnp.square(found - mu), axis=-1) + (1 - alpha) * b2

        return jax.lax.map(one, rows[0], batch_size=_BLOCK)

    def loss(key, targets, params, rows):
        drawn = jax.random.randint(key, rows[0].shape[:1], 0, num_targets)
        wanted = jnp.take_along_axis(_each(targets, rows[0]), drawn[None, :, None], axis=0)[0]
        return jnp.mean(jnp.square(_apply(params, rows[0]) - wanted))

    check.count("num_targets", num_targets)
    return _paid(Novelty(init, bonus, loss), coef, predictor, terminal, stream)


def rdd(
    coef: float | jax.Array | Callable = 1.0,
    *,
    std: float | jax.Array = 1.0,
    terminal: bool = True,
    predictor: Predictor = _PREDICTOR,
    stream: str = "",
) -> RewardTransform:
    """r + coef mean_F (f(s') - mu(s'))^2 where f learns mu + std noise, drawn anew for every row: random distribution distillation (2025).

    mu is a fixed random network. At std = 0 this is `rnd`; with noise the error of the mean falls with the number of visits, as a count does.

    Args:
        std: of the noise, >= 0.
        coef, terminal, predictor, stream: as in `rnd`.

    >>> rdd(std=0.5).stream
    ''
    """
    check.number("std", std, low=0)

    def init(key, row):
        keys = jax.random.split(key)
        return _init(keys[0], _target(predictor, row)), _init(keys[1], _learner(predictor, row))

    def bonus(fixed, params, rows):
        return jnp.mean(jnp.square(_apply(params, rows[0]) - _apply(fixed, rows[0])), axis=-1)

    def loss(key, fixed, params, rows):
        mu = _apply(fixed, rows[0])
        return jnp.mean(
            jnp.square(_apply(params, rows[0]) - mu - std * jax.random.normal(key, mu.shape))
        )

    return _paid(Novelty(init, bonus, loss), coef, predictor, terminal, stream)


def ensemble(
    coef: float | jax.Array | Callable = 1.0,
    *,
    num_predictors: int = 5,
    share: float | jax.Array = 0.5,
    terminal: bool = True,
    predictor: Predictor = _PREDICTOR,
    stream: str = "",
) -> RewardTransform:
    """r + coef mean_F var_N f_i(s'): how much N predictors of the same random features disagree (Pathak et al. 2019, on features of s').

    Predictors begin apart and each learns from its own random share of the rows, so they agree only where they were trained: what
    no network can predict costs them nothing, where a prediction error would stay.

    Args:
        num_predictors: N >= 2.
        share: of the rows that each predictor learns from, in (0, 1].
        coef, terminal, predictor, stream: as in `rnd`.

    >>> ensemble(num_predictors=3).stream
    ''
    """
    check.number("share", share, low=0, high=1, above=True)

    def init(key, row):
        keys = jax.random.split(key)
        several = jax.vmap(lambda key: _init(key, _learner(predictor, row)))(
            jax.random.split(keys[1], num_predictors)
        )
        return _init(keys[0], _target(predictor, row)), several

    def bonus(fixed, params, rows):
        return jax.lax.map(
            lambda x: jnp.mean(jnp.var(_each(params, x), axis=0), axis=-1),
            rows[0],
            batch_size=_BLOCK,
        )

    def loss(key, fixed, params, rows):
        error = jnp.square(_each(params, rows[0]) - _apply(fixed, rows[0])[None])  # [N, M, F]
        chosen = jax.random.bernoulli(key, share, error.shape[:2])
        return jnp.sum(jnp.mean(error * chosen[..., None], axis=(1, 2)))

    check.count("num_predictors", num_predictors)
    if num_predictors < 2:
        raise UsageError(
            f"num_predictors must be at least 2, so that they can disagree, got {num_predictors}."
        )
    return _paid(Novelty(init, bonus, loss), coef, predictor, terminal, stream)


def count(
    index: Callable,
    size: int,
    coef: float | jax.Array | Callable = 1.0,
    *,
    terminal: bool = True,
    stream: str = "",
) -> RewardTransform:
    """r + coef / sqrt(n(s')), n the visits so far, those of this rollout included (Strehl & Littman 2008): exact, for few states.

    Args:
        index: of ONE observation, the number of its state, int32 [] in [0, size).
        size: number of states; the table is float32 [size].
        coef, terminal, stream: as in `rnd`.

    >>> deep_sea = count(lambda obs: jnp.argmax(obs), 14 * 14, terminal=False)
    """
    check_function("index", index, "(observation) -> int32 []")
    check.count("size", size)

    def update(reward, state, batch, context):
        chex.assert_rank(reward, 2)
        where = jax.vmap(jax.vmap(index))(batch.next_obs)
        state = state.at[where].add(1.0)
        return reward + at(coef, context) * _alive(
            jax.lax.rsqrt(state[where]), batch, terminal
        ), state

    return RewardTransform(lambda key, spec: jnp.zeros(size), update, stream)


def disagreement(
    coef: float | jax.Array | Callable = 1.0, *, measure: Callable | None = None, stream: str = ""
) -> RewardTransform:
    """r + coef KL(T || S) at s', 0 at termination: the student is paid for going where it is not yet its teacher.

    The prediction error that a teacher gives instead of a random network. It falls as the student learns.

    Args:
        coef: a number or a schedule `update -> coef`.
        measure: instead of that KL, (student Outputs, teacher Outputs) -> [T, B].
        stream: the reward it is added to.

    >>> disagreement(0.1).stream
    ''
    """
    measure = measure or (lambda student, teacher: teacher.policy.kl(student.policy))
    check_function("measure", measure, "(student Outputs, teacher Outputs) -> [T, B]")

    def apart(batch, context):
        return measure(batch.acting_next, batch.teacher_next) * (1 - batch.terminated)

    return add(apart, coef, stream=stream)


def random_statistics(env: Env, key: jax.Array, num_steps: int = 128) -> Moments:
    """Moments of the observations that random actions lead to, for `statistics=` of a bonus (Burda et al. 2018).

    Args:
        env: of any kind.
        num_steps: of every environment.

    >>> import jaxkd
    >>> int(random_statistics(jaxkd.envs.make("CartPole-v1", num_envs=4), jax.random.key(0), num_steps=10).count)
    40
    """
    check.kind("env", env, Env, "an Env (jaxkd.envs.make)")
    check.count("num_steps", num_steps)
    space = env.action_space

    def step(env_state, key):
        keys = jax.random.split(key)
        if isinstance(space, Discrete):
            action = jax.random.randint(keys[0], (env.num_envs,), 0, space.n)
        else:
            action = jax.random.uniform(keys[0], (env.num_envs, *space.shape), minval=-1.0)
        env_state, now = env.step(keys[1], env_state, action)
        return env_state, now.next_obs

    first, rest = jax.random.split(key)
    seen = _flat(jax.lax.scan(step, env.reset(first)[0], jax.random.split(rest, num_steps))[1])
    return moments.update(moments.empty(seen[0, 0]), seen)


def visits_estimate(found: jax.Array, mean: jax.Array, square: jax.Array) -> jax.Array:
    """y = (f^2 - mu^2) / (B - mu^2) [..., F]: 1 / n in expectation for a predictor that is the mean of n draws of N targets.

    Args:
        found, mean, square: the prediction f, and the targets' mean mu and mean square B, [..., F].

    >>> visits_estimate(jnp.array([1.0, -1.0]), jnp.zeros(2), jnp.ones(2))      # after one visit f is one of the two targets
    Array([1., 1.], dtype=float32)
    """
    return (jnp.square(found) - jnp.square(mean)) / jnp.maximum(square - jnp.square(mean), _SMALL)


_ESTIMATORS = {
    "mean_first": lambda y: jnp.sqrt(jnp.clip(jnp.mean(y, axis=-1), 0.0, 1.0)),
    "offline": lambda y: jnp.mean(jnp.sqrt(jnp.clip(jnp.abs(y), 1e-3, 1.0)), axis=-1),
    "online": lambda y: jnp.sum(jnp.sqrt(jnp.clip(jnp.abs(y), 1e-6, 1.0)), axis=-1),
}


def _paid(
    novelty: Novelty,
    coef: Any,
    predictor: Predictor,
    terminal: bool,
    stream: str,
    *,
    teacher: bool = False,
) -> RewardTransform:
    """r + coef bonus(s'), then the predictor's steps."""
    _check_predictor(predictor)
    optimizer = optax.adam(predictor.learning_rate)

    def rows(seen, batch):
        x = _flat(batch.next_obs)
        x = moments.standardise(seen, x, _CLIP) if predictor.normalise else x
        wanted = batch.teacher_next.features if teacher else ()
        return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), (x, wanted))

    def init(key, spec):
        empty = moments.empty(jax.eval_shape(lambda obs: _flat(obs)[0, 0], spec[1].next_obs))
        seen = empty if predictor.statistics is None else predictor.statistics
        chex.assert_trees_all_equal_shapes(seen, empty)
        fixed, params = novelty.init(key, jax.eval_shape(rows, seen, spec[1]))
        return {
            "fixed": fixed,
            "params": params,
            "optimizer": optimizer.init(params),
            "statistics": seen,
        }

    def update(reward, state, batch, context):
        chex.assert_rank(reward, 2)
        seen = (
            moments.update(state["statistics"], _flat(batch.next_obs))
            if predictor.normalise
            else state["statistics"]
        )
        data = rows(seen, batch)
        bonus = novelty.bonus(state["fixed"], state["params"], data).reshape(reward.shape)

        def step(trained, key):
            params, opt_state = trained
            key_rows, key_loss = jax.random.split(key)
            chosen = jax.random.randint(key_rows, (predictor.batch_size,), 0, reward.size)
            few = jax.tree.map(lambda leaf: leaf[chosen], data)
            grads = grad(lambda params: novelty.loss(key_loss, state["fixed"], params, few))(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        keys = jax.random.split(context.key, predictor.num_minibatches)
        (params, opt_state), _ = jax.lax.scan(step, (state["params"], state["optimizer"]), keys)
        paid = reward + at(coef, context) * _alive(bonus, batch, terminal)
        return paid, state | {"params": params, "optimizer": opt_state, "statistics": seen}

    return RewardTransform(init, update, stream)


def _check_predictor(predictor: Any) -> None:
    check.kind(
        "predictor", predictor, Predictor, "a Predictor (jaxkd.rewards.Predictor(hidden=..., ...))"
    )
    for name, value in [
        ("batch_size", predictor.batch_size),
        ("num_minibatches", predictor.num_minibatches),
        ("features", predictor.features),
    ]:
        check.count(name, value)
    if not predictor.hidden:
        raise UsageError(
            "a bonus needs hidden layers: linear predictors and targets have no error after a few rows. Try hidden=(64, 64)."
        )
    if predictor.statistics is not None and not predictor.normalise:
        raise UsageError(
            "statistics are given, but normalise=False never uses them. Drop one of the two."
        )


def _alive(bonus: jax.Array, batch: Any, terminal: bool) -> jax.Array:
    return bonus if terminal else bonus * (1 - batch.terminated)


def _flat(obs: Any) -> jax.Array:
    """Observations [T, B, ...] of any pytree as float32 [T, B, D]."""
    leaves = [x.reshape(*x.shape[:2], -1).astype(jnp.float32) for x in jax.tree.leaves(obs)]
    return jnp.concatenate(leaves, axis=-1)


def _target(predictor: Predictor, row: tuple) -> tuple[int, ...]:
    """Widths of a fixed random network."""
    return row[0].shape[-1], *(predictor.hidden[:-1] or predictor.hidden), predictor.features


def _learner(predictor: Predictor, row: tuple) -> tuple[int, ...]:
    """Widths of the network that learns."""
    return row[0].shape[-1], *predictor.hidden, predictor.features


def _init(key: jax.Array, sizes: Sequence[int]) -> list[dict[str, jax.Array]]:
    """Parameters of an MLP of these widths, input and output included."""
    keys = jax.random.split(key, len(sizes) - 1)
    kernels = [
        orthogonal(math.sqrt(2))(k, shape)
        for k, shape in zip(keys, zip(sizes[:-1], sizes[1:], strict=True), strict=True)
    ]
    return [{"kernel": kernel, "bias": jnp.zeros(kernel.shape[1])} for kernel in kernels]


def _apply(layers: list, x: jax.Array) -> jax.Array:
    """[..., D] to [..., F], relu between the layers."""
    for i, layer in enumerate(layers):
        x = (jax.nn.relu(x) if i else x) @ layer["kernel"]
        x = x + jnp.broadcast_to(layer["bias"], x.shape)
    return x


def _each(layers: list, x: jax.Array) -> jax.Array:
    """[..., D] through each of N networks, [N, ..., F]."""
    return jax.vmap(_apply, in_axes=(0, None))(layers, x)
