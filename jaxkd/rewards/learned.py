"""Bonuses that are learnt: a model trained on rows that a function draws from the batch.

Legend of shapes: `T` time, `B` environments, `R = T B` rows, `M` rows of one step, `D` numbers of a
flat observation, `F` features, `N` networks of a set.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation

from jaxkd import check, moments
from jaxkd.base import Batch, Discrete, Env, RewardTransform, UsageError
from jaxkd.cpu import grad
from jaxkd.description import described
from jaxkd.keys import scan
from jaxkd.losses.combine import at
from jaxkd.moments import Moments
from jaxkd.networks.initial import orthogonal

_CLIP = 5.0  # of standardised observations (Burda et al. 2018)


class Model(NamedTuple):
    """What a learnt bonus is made of; `rows` are what the caller's function draws from a batch.

    >>> def init(key, rows):                              # rows: ShapeDtypeStructs, [R, ...]
    ...     return (), jnp.zeros(rows.shape[-1])          # what stays fixed, what is trained
    >>> def error(fixed, params, rows):
    ...     return jnp.mean(jnp.square(rows - params[None]), axis=-1)
    >>> centre = Model(init, error, lambda key, fixed, params, rows: error(fixed, params, rows))
    """

    init: Callable  # (key, rows spec [R, ...]) -> (fixed, params)
    bonus: Callable  # (fixed, params, rows [R, ...]) -> [R]
    loss: Callable  # (key, fixed, params, rows [M, ...]) -> [M]: the mean is taken for it


class Predictor(NamedTuple):
    """The networks of a bonus, relu MLPs, and how those that learn are trained.

    After the bonus of an update is computed, `num_minibatches` steps of Adam, each on `batch_size`
    random rows of the rollout, however many environments there are.

    >>> from jaxkd.rewards import rnd
    >>> rnd(predictor=Predictor(hidden=(128, 128), learning_rate=3e-4)).stream
    ''
    """

    hidden: tuple[int, ...] = (64, 64)  # widths; a fixed target has one layer less, at least one
    features: int = 64  # F
    learning_rate: float | jax.Array = 1e-3
    batch_size: int = 256
    num_minibatches: int = 2
    normalise: bool = True  # observations by their running moments, clipped to [-5, 5]
    statistics: Moments | None = None  # to begin with (`random_statistics`); they go on running


PREDICTOR = Predictor()


@described
def learned(
    model: Model,
    rows: Callable,
    coef: float | jax.Array | Callable = 1.0,
    *,
    training: Predictor = PREDICTOR,
    terminal: bool = True,
    stream: str = "",
) -> RewardTransform:
    """r + coef bonus(rows(batch)), then the model's own steps: it is paid before it has learnt.

    `rows` sees the batch with `obs` and `next_obs` flat, float32 [T, B, D], standardised by the
    running moments of `next_obs` where `training.normalise` says so.

    Rows of weight 0 are no actions of the learner's: they pay nothing, train nothing and count in
    no moment, whatever stands in them. Where they are all there is, nothing changes.

    Args:
        model: what is trained, and what it pays.
        rows: batch [T, B] -> a pytree of [T, B, ...], whatever the model learns from.
        coef: a number or a schedule `update -> coef`.
        training: learning rate, sizes of the steps, moments. The model itself reads the others.
        terminal: False pays nothing for a state that terminates the episode; where such a state is
            not finite, it is also left out of training and moments.
        stream: the reward it is added to; a new name starts a stream of its own at 0.

    Returns:
        a transform whose state is a dict of "fixed", "params", "optimizer" and "statistics".

    >>> from jaxkd.rewards import Model, learned
    >>> def error(fixed, params, rows):
    ...     return jnp.mean(jnp.square(rows - params[None]), axis=-1)
    >>> centre = Model(
    ...     init=lambda key, rows: ((), jnp.zeros(rows.shape[-1])),
    ...     bonus=error,
    ...     loss=lambda key, fixed, params, rows: error(fixed, params, rows),
    ... )
    >>> far_from_the_usual = learned(centre, lambda batch: batch.next_obs, 0.1)
    """
    check.kind("model", model, Model, "a Model (jaxkd.rewards.Model(init, bonus, loss))")
    check.function("rows", rows, "(batch) -> a pytree of [T, B, ...]")
    _check_training(training, coef)
    optimizer = optax.adam(training.learning_rate)

    def drawn(statistics, batch, counts):
        """The rows [R, ...], zeros where they do not count."""
        found = rows(_flat_batch(batch, statistics if training.normalise else None))
        return jax.tree.map(lambda leaf: _in_one_axis(_only(counts, leaf)), found)

    def init(key, spec):
        empty = moments.empty(jax.eval_shape(lambda obs: flat(obs)[0, 0], spec[1].next_obs))
        statistics = empty if training.statistics is None else training.statistics
        chex.assert_trees_all_equal_shapes(statistics, empty)
        row_spec = jax.eval_shape(lambda batch: drawn(statistics, batch, ()), spec[1])
        fixed, params = model.init(key, row_spec)
        opt_state = optimizer.init(params)
        return dict(fixed=fixed, params=params, optimizer=opt_state, statistics=statistics)

    def update(reward, state, batch, context):
        chex.assert_rank(reward, 2)
        counts = _counting(batch, terminal)
        statistics = state["statistics"]
        if training.normalise:
            statistics = moments.update(statistics, flat(batch.next_obs), counts)
        data = drawn(statistics, batch, counts)
        bonus = model.bonus(state["fixed"], state["params"], data).reshape(reward.shape)
        bonus = _only(counts, _alive(bonus, batch, terminal))

        step = _training_step(model, training, optimizer, state["fixed"], data, counts)
        keys = jax.random.split(context.key, training.num_minibatches)
        trained = state["params"], state["optimizer"]
        (params, opt_state), _ = scan(step, trained, keys)
        after = dict(params=params, optimizer=opt_state, statistics=statistics)
        return reward + at(coef, context) * bonus, state | after

    return RewardTransform(init, update, stream)


def _training_step(
    model: Model,
    training: Predictor,
    optimizer: GradientTransformation,
    fixed: Any,
    data: Any,
    counts: Any,
) -> Callable:
    """One step of the optimizer on random rows, as the body of a scan over keys."""
    number = jax.tree.leaves(data)[0].shape[0]
    counts = counts if isinstance(counts, tuple) else counts.reshape(-1)  # [R], as the rows

    def step(trained, key):
        params, opt_state = trained
        key_rows, key_loss = jax.random.split(key)
        index = jax.random.randint(key_rows, (training.batch_size,), 0, number, jnp.int32)
        minibatch = jax.tree.map(lambda leaf: leaf[index], data)

        def mean_loss(params):
            loss = model.loss(key_loss, fixed, params, minibatch)  # [M]
            chex.assert_shape(loss, index.shape)
            if isinstance(counts, tuple):
                return jnp.mean(loss)
            # Rows that do not count were zeroed when drawn, so their gradient is finite too.
            share = jnp.maximum(jnp.mean(counts[index]), 1e-8)
            return jnp.mean(jnp.where(counts[index], loss, 0.0)) / share

        gradient = grad(mean_loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats
            updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return step


def _counting(batch: Batch, terminal: bool) -> Any:
    """Which rows count, bool [T, B], or () where all do."""
    counts = () if isinstance(batch.weight, tuple) else batch.weight > 0
    if terminal:
        return counts
    # What pays nothing must not break the model: nan is a common filler of terminal observations.
    finite = jnp.all(jnp.isfinite(flat(batch.next_obs)), axis=-1)
    usable = finite | (batch.terminated == 0)
    return usable if isinstance(counts, tuple) else usable & counts


def _only(counts: Any, x: jax.Array) -> jax.Array:
    """x [T, B, ...], 0 where it does not count: selected, because 0 times nan is nan."""
    if isinstance(counts, tuple):
        return x
    rows = counts.reshape(counts.shape + (1,) * (x.ndim - 2))
    return jnp.where(rows, x, jnp.zeros((), x.dtype))


def _alive(bonus: jax.Array, batch: Batch, terminal: bool) -> jax.Array:
    """The bonus [T, B], 0 for a state that terminates the episode unless `terminal`."""
    return bonus if terminal else jnp.where(batch.terminated > 0, 0.0, bonus)


def _flat_batch(batch: Batch, statistics: Moments | None) -> Batch:
    """The batch with `obs` and `next_obs` [T, B, D], standardised if there are statistics."""

    def prepared(obs):
        if not jax.tree.leaves(obs):
            return obs
        x = flat(obs)
        return x if statistics is None else moments.standardise(statistics, x, _CLIP)

    return batch._replace(obs=prepared(batch.obs), next_obs=prepared(batch.next_obs))


def _in_one_axis(x: jax.Array) -> jax.Array:
    """[T, B, ...] as [R, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _check_training(predictor: Any, coef: Any) -> None:
    check.number("coef", coef)
    hint = "a Predictor (jaxkd.rewards.Predictor(hidden=..., ...))"
    check.kind("predictor", predictor, Predictor, hint)
    check.number("learning_rate", predictor.learning_rate, low=0)
    for name in ("batch_size", "num_minibatches", "features"):
        check.count(name, getattr(predictor, name))
    if not predictor.hidden:
        raise UsageError(
            "a bonus needs hidden layers: linear predictors and targets have no error after a few "
            "rows. Try hidden=(64, 64)."
        )
    if predictor.statistics is not None and not predictor.normalise:
        raise UsageError(
            "statistics are given, but normalise=False never uses them. Drop one of the two."
        )


# --- observations ---------------------------------------------------------------------------------


def flat(obs: Any) -> jax.Array:
    """Observations [T, B, ...] of any pytree as float32 [T, B, D]."""
    leaves = [x.reshape(*x.shape[:2], -1).astype(jnp.float32) for x in jax.tree.leaves(obs)]
    return jnp.concatenate(leaves, axis=-1)


def random_statistics(env: Env, key: jax.Array, num_steps: int = 128) -> Moments:
    """Moments of what random actions lead to, for `statistics=` of a bonus (Burda et al. 2018).

    Args:
        env: of any kind. Rows of weight 0 are not counted.
        num_steps: of every environment.

    Returns:
        Moments of the flat observation, [D].

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> int(random_statistics(env, jax.random.key(0), num_steps=10).count)
    40
    """
    check.kind("env", env, Env, "an Env (jaxkd.envs.make)")
    check.count("num_steps", num_steps)
    space = env.action_space

    def step(env_state, key):
        keys = jax.random.split(key)
        if isinstance(space, Discrete):
            action = jax.random.randint(keys[0], (env.num_envs,), 0, space.n, jnp.int32)
        else:
            action = jax.random.uniform(keys[0], (env.num_envs, *space.shape), jnp.float32, -1.0)
        env_state, time_step = env.step(keys[1], env_state, action)
        return env_state, (time_step.next_obs, time_step.weight)

    first, rest = jax.random.split(key)
    env_state = env.reset(first)[0]
    _, (next_obs, weight) = scan(step, env_state, jax.random.split(rest, num_steps))
    samples = flat(next_obs)
    return moments.update(moments.empty(samples[0, 0]), samples, weight)


# --- networks -------------------------------------------------------------------------------------


def target_widths(predictor: Predictor, inputs: int) -> tuple[int, ...]:
    """Widths of a fixed random network, input and output included."""
    return inputs, *(predictor.hidden[:-1] or predictor.hidden), predictor.features


def trained_widths(predictor: Predictor, inputs: int) -> tuple[int, ...]:
    """Widths of the network that learns, input and output included."""
    return inputs, *predictor.hidden, predictor.features


def init_layers(key: jax.Array, widths: Sequence[int]) -> list[dict[str, jax.Array]]:
    """Parameters of an MLP of these widths, input and output included."""
    keys = jax.random.split(key, len(widths) - 1)
    layers = []
    for i, key_layer in enumerate(keys):
        kernel = orthogonal(math.sqrt(2))(key_layer, (widths[i], widths[i + 1]))
        layers.append({"kernel": kernel, "bias": jnp.zeros(widths[i + 1], jnp.float32)})
    return layers


def init_several(key: jax.Array, number: int, widths: Sequence[int]) -> list[dict[str, jax.Array]]:
    """Parameters of N MLPs, leaves [N, ...]."""
    return jax.vmap(lambda key: init_layers(key, widths))(jax.random.split(key, number))


def apply_layers(layers: list, x: jax.Array) -> jax.Array:
    """[..., D] to [..., F], relu between the layers."""
    for i, layer in enumerate(layers):
        x = (jax.nn.relu(x) if i else x) @ layer["kernel"]
        x = x + jnp.broadcast_to(layer["bias"], x.shape)
    return x


def apply_each(layers: list, x: jax.Array) -> jax.Array:
    """[..., D] through each of N networks, [N, ..., F]."""
    return jax.vmap(apply_layers, in_axes=(0, None))(layers, x)
