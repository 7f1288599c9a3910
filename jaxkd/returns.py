"""How rewards become advantages and value targets: factories of `Returns`, and their recursions.

A row of weight 0 is of an action that was not the learner's: a prompt's token, padding, a player
who waits. What it earns belongs to the trajectory: it flows to earlier rows, discounted like any
step. The row itself gets advantage 0, and the engine gives it weight 0. Its value is nobody's: no
loss trains it, so no other row bootstraps from it.

Legend of shapes: `T` time, `B` environments, `G` members of a group; the episodes of a rollout are
numbered [T], as many as there can be.
"""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Batch, Env, Returns, UsageError
from jaxkd.description import described

_UNROLL = 8  # of the backward recursion: a few scalar operations a step
_EPSILON = 1e-6  # beside the standard deviation of a group's returns


def discounted_sum(x: jax.Array, decay: jax.Array) -> jax.Array:
    """y[t] = x[t] + decay[t] * y[t+1], y[T] = 0, for one trajectory [T].

    >>> discounted_sum(jnp.array([1.0, 1.0]), jnp.array([0.5, 0.5]))
    Array([1.5, 1. ], dtype=float32)
    """
    chex.assert_rank([x, decay], 1)

    def body(y, row):
        y = row[0] + row[1] * y
        return y, y

    return jax.lax.scan(body, jnp.zeros_like(x[0]), (x, decay), reverse=True, unroll=_UNROLL)[1]


@described
def gae(
    gamma: float | jax.Array = 0.99, lambda_: float | jax.Array = 0.95, *, episodic: bool = True
) -> Returns:
    """Generalised advantage estimation (Schulman et al. 2016).

    d_t = r_t + gamma (1 - terminated_t) V(next_obs_t) - V(obs_t)
    A_t = d_t + gamma lambda (1 - terminated_t) (1 - truncated_t) A_{t+1}
    target = A + V

    A time limit bootstraps with the value of the true successor; a termination does not. Where the
    next row has weight 0, its value is 0 and lambda is 1: the return passes through it to the next
    row that counts, as if all steps between were one of the environment's.

    Args:
        gamma, lambda_: in [0, 1].
        episodic: False carries the return through every reset, as random network distillation does
            (Burda et al. 2018): it bootstraps from the next row and never cuts.

    >>> gae(0.99, 0.95).fresh
    False
    """
    check.number("gamma", gamma, low=0, high=1)
    check.number("lambda_", lambda_, low=0, high=1)

    def evaluate(reward, value, next_value, batch, context):
        chex.assert_equal_shape([reward, next_value, value[:-1]])
        counts = () if isinstance(batch.weight, tuple) else batch.weight > 0
        decay = lambda_
        if not isinstance(counts, tuple):
            decay = jnp.where(_next_counts(counts), lambda_, 1.0)
            value, next_value = _values_that_count(value, next_value, batch, counts)
        if episodic:
            discount = gamma * (1 - batch.terminated)
            trace = decay * discount * (1 - batch.truncated)
            delta = reward + discount * next_value - value[:-1]
        else:
            trace = jnp.full_like(reward, gamma * decay)
            delta = reward + gamma * value[1:] - value[:-1]
        advantage = jax.vmap(discounted_sum, 1, 1)(delta, trace)
        target = advantage + value[:-1]
        if isinstance(counts, tuple):
            return advantage, target
        return jnp.where(counts, advantage, 0.0), target

    return Returns(evaluate)


def _next_counts(counts: jax.Array) -> jax.Array:
    """Whether the next row does, [T, B]; after the last one: it bootstraps from its successor."""
    return jnp.concatenate([counts[1:], jnp.ones_like(counts[:1])])


def _values_that_count(
    value: jax.Array, next_value: jax.Array, batch: Batch, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Values of rows [T + 1, B] and of successors [T, B], 0 where no loss trains them."""
    value = jnp.concatenate([jnp.where(counts, value[:-1], 0.0), value[-1:]])
    # The successor of a last row of an episode is no row of the batch: it is bootstrapped from.
    done = batch.terminated + batch.truncated > 0
    return value, jnp.where(done | _next_counts(counts), next_value, 0.0)


@described
def q_lambda(gamma: float | jax.Array = 0.99, lambda_: float | jax.Array = 0.65) -> Returns:
    """Peng's Q(lambda), the target of PQN: `gae` under another name.

    Peng and Williams 1994; Gallici et al. 2025. Inside an episode

    target_t = r_t + gamma (1 - terminated_t) [lambda target_{t+1}
                                               + (1 - lambda) max_a Q(next_obs_t, a)],

    at a time limit and in the last row all of the bracket is max_a Q(next_obs_t, a). That is GAE's
    A + V with V = max_a Q, which is the value of a Q network (`networks.q`). Nothing is cut after
    an exploratory action (Watkins' Q(lambda) would): the target is of a mixture of the behaviour
    and the greedy policy.

    Args:
        gamma, lambda_: in [0, 1].

    >>> q_lambda(0.99, 0.65).needs_value
    True
    """
    return gae(gamma, lambda_)


@described
def monte_carlo(gamma: float | jax.Array = 0.99) -> Returns:
    """The discounted return as the target, minus the value as the advantage: `gae`, lambda = 1.

    Where the rollout or a time limit cuts an episode, the value of what was cut off stands for the
    rest.

    Args:
        gamma: in [0, 1].

    >>> monte_carlo(0.99).fresh
    False
    """
    return gae(gamma, 1.0)


@described
def group_relative(
    group_size: int,
    *,
    standardise: bool = True,
    leave_one_out: bool = False,
    per_episode: bool = True,
) -> Returns:
    """Episodes that began alike, compared by their undiscounted returns R_i; no value is needed.

    A_i = (R_i - mean_j R_j) / (std_j R_j + 1e-6) in every row of episode i. The moments are over
    the finished n-th episodes of one group (environments i with the same i // G), std with ddof 0.
    target = mean_j R_j: `td_mse` on it learns the group-relative value. Every update begins with a
    reset. Unfinished episodes, and a group's only finished one, get weight 0.

    Rows of weight 0 (a prompt) earn for R_i like any other, have advantage 0 and stay at weight 0;
    |o_i| below is the number of rows of the episode that count.

    GRPO (Shao et al. 2024) is the default; Dr. GRPO (Liu et al. 2025): standardise=False,
    per_episode=False; RLOO (Ahmadian et al. 2024): standardise=False, leave_one_out=True.

    Args:
        group_size: G, that of `envs.make(..., group_size=G)`.
        standardise: divides by the standard deviation; then A does not change under
            R -> a R + b, a > 0.
        leave_one_out: R_i minus the mean of the others.
        per_episode: weight 1 / |o_i|, so that every episode counts alike (GRPO's mean over an
            episode, then over episodes); False: every row counts alike. Both are relative to the
            sum of weights in the minibatch.

    Returns:
        Returns that give (advantage, target, weight), [T, B] each.

    Raises:
        UsageError: at `distill`, where G is not the environment's, or an episode may be longer than
            a rollout. Losses must not normalise the advantage once more:
            `ppo_clip(normalise=False)`.

    >>> group_relative(8).needs_value
    False
    """
    check.count("group_size", group_size)
    if group_size < 2:
        raise UsageError(
            f"group_size must be at least 2, got {group_size}: the only member of a group "
            f"has nobody to be compared with."
        )

    def evaluate(reward, value, next_value, batch, context):
        chex.assert_rank([reward, batch.reset], 2)
        # Of the episode that a row belongs to.
        number = jnp.cumsum(batch.reset, axis=0).astype(jnp.int32) - 1
        totals, lengths, finished = _episodes(reward, batch, number)
        groups = (reward.shape[0], -1, group_size)
        here = finished.reshape(groups)
        advantage, mean = _compared(totals.reshape(groups), here, standardise, leave_one_out)
        weight = here * (jnp.sum(here, -1, keepdims=True) > 1)
        weight = weight / jnp.maximum(lengths.reshape(groups), 1) if per_episode else weight
        advantage, mean, weight = (
            jnp.take_along_axis(x.reshape(reward.shape), number, axis=0)  # to the episode's rows
            for x in (advantage, mean, weight)
        )
        if isinstance(batch.weight, tuple):
            return advantage, mean, weight
        return jnp.where(batch.weight > 0, advantage, 0.0), mean, weight * batch.weight

    return Returns(evaluate, fresh=True, needs_value=False, group_size=int(group_size))


def _episodes(reward, batch, number):
    """Return, rows that count, and finished (1 or 0) of each environment's n-th episode.

    [T, B] each, n along the first axis, 0 where there is none.
    """
    done = batch.terminated + batch.truncated
    counts = jnp.ones_like(reward) if isinstance(batch.weight, tuple) else batch.weight
    rest = jax.vmap(discounted_sum, 1, 1)
    # From each row to the end of its episode.
    ahead = [rest(x, 1 - done) for x in (reward, counts, done)]
    length, columns = reward.shape[0], jnp.arange(reward.shape[1])
    # An episode's first row goes into its slot, the others nowhere.
    slot = jnp.where(batch.reset > 0, number, length)
    return [jnp.zeros_like(x).at[slot, columns[None]].set(x, mode="drop") for x in ahead]


def _compared(totals, here, standardise, leave_one_out):
    """Advantage, and mean return of the group, of [T, B / G, G] returns where `here` is 1.

    Both are 0 where it is 0 for the whole group.
    """
    count = jnp.maximum(jnp.sum(here, axis=-1, keepdims=True), 1)
    least = jnp.min(jnp.where(here > 0, totals, jnp.inf), axis=-1, keepdims=True)
    least = jnp.where(jnp.isfinite(least), least, 0)
    above = here * (totals - least)  # so that rounding leaves equal returns equal to their mean
    mean = jnp.sum(above, axis=-1, keepdims=True) / count
    advantage = here * (above - mean)
    if standardise:
        var = jnp.sum(jnp.square(advantage), axis=-1, keepdims=True) / count
        advantage = advantage / (jnp.sqrt(var) + _EPSILON)
    if leave_one_out:
        advantage = advantage * count / jnp.maximum(count - 1, 1)
    return advantage, jnp.broadcast_to(mean + least, totals.shape)


def check_groups(returns: Mapping[str, Returns], env: Env, unroll_length: int) -> None:
    """Raises unless the groups are the environment's, and their episodes fit into a rollout."""
    grouped = {name: made.group_size for name, made in returns.items() if made.group_size}
    for stream, size in grouped.items():
        who = f"returns {stream!r}" if stream else "returns"
        if size != env.group_size:
            raise UsageError(
                f"{who} compare groups of {size}, but {env.name!r} has "
                f"group_size = {env.group_size}. "
                f"Make it with envs.make(..., group_size={size})."
            )
        if env.max_steps is None:
            raise UsageError(
                f"{who} compare whole episodes, but {env.name!r} has no time limit. "
                f"Give one that a rollout can hold: envs.make(..., max_steps={unroll_length})."
            )
        if unroll_length < env.max_steps:
            raise UsageError(
                f"{who} compare whole episodes, but unroll_length = {unroll_length} is shorter "
                f"than the {env.max_steps} steps of an episode of {env.name!r}. "
                f"Take unroll_length={env.max_steps}, or envs.make(..., max_steps={unroll_length})."
            )


@described
def scale(coef: float | jax.Array | Callable, returns: Returns) -> Returns:
    """`returns` with its advantage times `coef`; the target stays.

    Args:
        coef: a number or a schedule `update -> coef`.

    >>> scale(2.0, gae(0.999)).fresh
    False
    """

    def evaluate(reward, value, next_value, batch, context):
        advantage, target, *weight = returns.evaluate(reward, value, next_value, batch, context)
        factor = coef(context.update) if callable(coef) else coef
        return advantage * factor, target, *weight

    return returns._replace(evaluate=evaluate)
