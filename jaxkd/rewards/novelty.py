"""What is paid for novelty: prediction errors of random features, and how much predictors disagree.

Legend of shapes: `T` time, `B` environments, `R = T B` rows, `M` rows of one step, `D` numbers of a
flat observation, `F` features, `N` networks of a set.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Batch, RewardTransform, UsageError
from jaxkd.description import described
from jaxkd.rewards.learned import (
    PREDICTOR,
    Model,
    Predictor,
    apply_each,
    apply_layers,
    init_layers,
    init_several,
    learned,
    target_widths,
    trained_widths,
)

_BLOCK = 1024  # rows that pass through N networks at once: memory does not grow with N R
_SMALL = 1e-6  # of a variance of targets, in the reference code too


def _successors(batch: Batch) -> jax.Array:
    """Rows of the built-in bonuses: the true successor, [T, B, D]."""
    return batch.next_obs


@described
def rnd(
    coef: float | jax.Array | Callable = 1.0,
    *,
    target: str = "random",
    norm: bool = False,
    terminal: bool = True,
    predictor: Predictor = PREDICTOR,
    stream: str = "",
) -> RewardTransform:
    """r + coef mean_F (f(s') - t(s'))^2: random network distillation (Burda et al. 2018).

    The error of a predictor f of features t, where s' is the true successor. It is small where s'
    is like what f was trained on. As in the paper, give it a stream of its own:
    `normalise(gamma, episodic=False, stream=...)` behind it, `gae(gamma, episodic=False)` and a
    value head for the stream, and `returns.scale(2.0, ...)` for the environment's.

    Args:
        coef: a number or a schedule `update -> coef`.
        target: "random" a fixed random network, "teacher" the teacher's features at s'.
        norm: pays the distance |f - t| instead (rsl_rl); f learns by the mean square all the same.
        terminal: False pays nothing for a state that terminates the episode.
        predictor: sizes and training of f.
        stream: the reward it is added to; a new name starts a stream of its own at 0.

    Raises:
        UsageError: `target` is another word.

    >>> import jaxkd
    >>> scale = jaxkd.rewards.normalise(0.99, episodic=False, stream="novelty")
    >>> rewards = {"rnd": rnd(stream="novelty"), "scale": scale}
    """
    if target not in ("random", "teacher"):
        raise UsageError(f"target must be 'random' or 'teacher', got {target!r}.")
    pays = _distance if norm else _error
    made = _of_random_features if target == "random" else _of_teacher
    model = made(predictor, pays)
    rows = _successors if target == "random" else _successors_and_features
    return learned(model, rows, coef, training=predictor, terminal=terminal, stream=stream)


def _of_random_features(predictor: Predictor, pays: Callable) -> Model:
    """f learns the features of a fixed random network; a row is s' [D]."""

    def apart(measure, fixed, params, rows):
        return measure(apply_layers(params, rows), apply_layers(fixed, rows))

    return Model(
        lambda key, rows: _target_and_learner(key, predictor, rows),
        lambda fixed, params, rows: apart(pays, fixed, params, rows),
        lambda key, fixed, params, rows: apart(_error, fixed, params, rows),
    )


def _of_teacher(predictor: Predictor, pays: Callable) -> Model:
    """f learns the teacher's features; a row is the pair s' [D] and features [F]."""

    def init(key, rows):
        obs, features = (leaf.shape[-1] for leaf in rows)
        key_learner = jax.random.split(key)[1]
        return (), init_layers(key_learner, (obs, *predictor.hidden, features))

    def apart(measure, params, rows):
        obs, features = rows
        return measure(apply_layers(params, obs), features)

    return Model(
        init,
        lambda fixed, params, rows: apart(pays, params, rows),
        lambda key, fixed, params, rows: apart(_error, params, rows),
    )


def _successors_and_features(batch: Batch) -> tuple[jax.Array, jax.Array]:
    return batch.next_obs, batch.teacher_next.features


@described
def drnd(
    coef: float | jax.Array | Callable = 1.0,
    *,
    alpha: float | jax.Array = 0.9,
    num_targets: int = 10,
    estimator: str = "mean_first",
    summed: bool = False,
    terminal: bool = True,
    predictor: Predictor = PREDICTOR,
    stream: str = "",
) -> RewardTransform:
    """r + coef (alpha b1 + (1 - alpha) b2): distributional RND (Yang et al. 2024).

    The predictor f learns one of N random targets, drawn anew for every row. With mu and B the mean
    and the mean square over targets, b1 = |f - mu|^2 falls to 0 and b2 = sqrt(y) to 1 / sqrt(n)
    after n visits: y = (f^2 - mu^2) / (B - mu^2) is an unbiased estimate of 1 / n. b1 is a mean
    over features here, as in `rnd`, unless `summed`.

    Args:
        alpha: share of b1, in [0, 1].
        num_targets: N.
        estimator: of b2. "mean_first" sqrt(clip(mean_F y, 0, 1)), because y is unbiased only before
            any other operation; "offline" mean_F sqrt(clip(|y|, 1e-3, 1)) and "online"
            sum_F sqrt(clip(|y|, 1e-6, 1)) are the reference codes'.
        summed: b1 is the sum over features, as in the paper and its codes (which divide it by a
            running std offline): F times as large beside b2.
        coef, terminal, predictor, stream: as in `rnd`.

    Raises:
        UsageError: `alpha` is outside [0, 1], or `estimator` another word.

    >>> drnd(0.5, stream="novelty").stream
    'novelty'
    """
    check.number("alpha", alpha, low=0, high=1)
    check.count("num_targets", num_targets)
    if estimator not in _ESTIMATORS:
        names = ", ".join(map(repr, _ESTIMATORS))
        raise UsageError(f"estimator must be one of {names}, got {estimator!r}.")

    def init(key, rows):
        key_targets, key_learner = jax.random.split(key)
        inputs = rows.shape[-1]
        targets = init_several(key_targets, num_targets, target_widths(predictor, inputs))
        return targets, init_layers(key_learner, trained_widths(predictor, inputs))

    def bonus(targets, params, rows):
        def one(obs):
            prediction = apply_layers(params, obs)
            wanted = apply_each(targets, obs)
            mean, square = jnp.mean(wanted, axis=0), jnp.mean(jnp.square(wanted), axis=0)
            b1 = _error(prediction, mean) * (prediction.shape[-1] if summed else 1)
            b2 = _ESTIMATORS[estimator](visits_estimate(prediction, mean, square))
            return alpha * b1 + (1 - alpha) * b2

        return jax.lax.map(one, rows, batch_size=_BLOCK)

    def loss(key, targets, params, rows):
        index = jax.random.randint(key, rows.shape[:1], 0, num_targets, jnp.int32)
        wanted = jnp.take_along_axis(apply_each(targets, rows), index[None, :, None], axis=0)[0]
        return _error(apply_layers(params, rows), wanted)

    model = Model(init, bonus, loss)
    return learned(model, _successors, coef, training=predictor, terminal=terminal, stream=stream)


def visits_estimate(prediction: jax.Array, mean: jax.Array, square: jax.Array) -> jax.Array:
    """y = (f^2 - mu^2) / (B - mu^2), [..., F]: 1 / n in expectation after n visits.

    That is for a predictor that is the mean of n draws of N targets (Yang et al. 2024).

    Args:
        prediction, mean, square: f, and the targets' mean mu and mean square B, [..., F].

    After one visit f is one of the two targets:

    >>> visits_estimate(jnp.array([1.0, -1.0]), jnp.zeros(2), jnp.ones(2))
    Array([1., 1.], dtype=float32)
    """
    spread = jnp.maximum(square - jnp.square(mean), _SMALL)
    return (jnp.square(prediction) - jnp.square(mean)) / spread


_ESTIMATORS = {  # of b2 [...] from y [..., F]
    "mean_first": lambda y: jnp.sqrt(jnp.clip(jnp.mean(y, axis=-1), 0.0, 1.0)),
    "offline": lambda y: jnp.mean(jnp.sqrt(jnp.clip(jnp.abs(y), 1e-3, 1.0)), axis=-1),
    "online": lambda y: jnp.sum(jnp.sqrt(jnp.clip(jnp.abs(y), 1e-6, 1.0)), axis=-1),
}


@described
def rdd(
    coef: float | jax.Array | Callable = 1.0,
    *,
    std: float | jax.Array = 1.0,
    terminal: bool = True,
    predictor: Predictor = PREDICTOR,
    stream: str = "",
) -> RewardTransform:
    """r + coef mean_F (f(s') - mu(s'))^2: random distribution distillation (2025).

    f learns mu + std noise, drawn anew for every row; mu is a fixed random network. At std = 0 this
    is `rnd`; with noise the error of the mean falls with the number of visits, as a count does.

    Args:
        std: of the noise, >= 0.
        coef, terminal, predictor, stream: as in `rnd`.

    Raises:
        UsageError: `std` is negative.

    >>> rdd(std=0.5).stream
    ''
    """
    check.number("std", std, low=0)

    def bonus(fixed, params, rows):
        return _error(apply_layers(params, rows), apply_layers(fixed, rows))

    def loss(key, fixed, params, rows):
        mu = apply_layers(fixed, rows)
        noise = std * jax.random.normal(key, mu.shape, jnp.float32)
        return jnp.mean(jnp.square(apply_layers(params, rows) - mu - noise), axis=-1)

    model = Model(lambda key, rows: _target_and_learner(key, predictor, rows), bonus, loss)
    return learned(model, _successors, coef, training=predictor, terminal=terminal, stream=stream)


@described
def ensemble(
    coef: float | jax.Array | Callable = 1.0,
    *,
    num_predictors: int = 5,
    share: float | jax.Array = 0.5,
    terminal: bool = True,
    predictor: Predictor = PREDICTOR,
    stream: str = "",
) -> RewardTransform:
    """r + coef mean_F var_N f_i(s'): how much N predictors of the same random features disagree.

    Pathak et al. 2019, on features of s'. Predictors begin apart and each learns from its own
    random share of the rows, so they agree only where they were trained: what no network can
    predict costs them nothing, where a prediction error would stay.

    Args:
        num_predictors: N >= 2.
        share: of the rows that each predictor learns from, in (0, 1].
        coef, terminal, predictor, stream: as in `rnd`.

    Raises:
        UsageError: there are fewer than two predictors, or `share` is outside (0, 1].

    >>> ensemble(num_predictors=3).stream
    ''
    """
    check.number("share", share, low=0, high=1, above=True)
    check.count("num_predictors", num_predictors)
    if num_predictors < 2:
        raise UsageError(
            f"num_predictors must be at least 2, so that they can disagree, got {num_predictors}."
        )

    def init(key, rows):
        key_target, key_learners = jax.random.split(key)
        inputs = rows.shape[-1]
        several = init_several(key_learners, num_predictors, trained_widths(predictor, inputs))
        return init_layers(key_target, target_widths(predictor, inputs)), several

    def bonus(fixed, params, rows):
        def one(obs):
            return jnp.mean(jnp.var(apply_each(params, obs), axis=0), axis=-1)

        return jax.lax.map(one, rows, batch_size=_BLOCK)

    def loss(key, fixed, params, rows):
        error = jnp.square(apply_each(params, rows) - apply_layers(fixed, rows)[None])  # [N, M, F]
        learns = jax.random.bernoulli(key, share, error.shape[:2])  # who learns from which row
        return jnp.sum(jnp.mean(jnp.where(learns[..., None], error, 0.0), axis=-1), axis=0)

    model = Model(init, bonus, loss)
    return learned(model, _successors, coef, training=predictor, terminal=terminal, stream=stream)


def _target_and_learner(key: jax.Array, predictor: Predictor, rows: jax.Array) -> tuple:
    """A fixed random network, and one that learns it."""
    key_target, key_learner = jax.random.split(key)
    inputs = rows.shape[-1]
    target = init_layers(key_target, target_widths(predictor, inputs))
    return target, init_layers(key_learner, trained_widths(predictor, inputs))


def _error(prediction: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean over the features of the squared error, [...]."""
    return jnp.mean(jnp.square(prediction - wanted), axis=-1)


def _distance(prediction: jax.Array, wanted: jax.Array) -> jax.Array:
    """The Euclidean distance, [...]."""
    return jnp.linalg.norm(prediction - wanted, axis=-1)
