"""How rewards become advantages and value targets: factories of `Returns`, and their recursions.

A row of weight 0 is of an action that was not the learner's: a prompt's token, padding, a player
who waits. What it earns belongs to the trajectory: it flows to earlier rows, discounted like any
step. The row itself gets advantage 0, and the engine gives it weight 0. Its value is nobody's: no
loss trains it, so no other row bootstraps from it.

Legend of shapes: `T` time, `B` environments, `G` members of a group.
"""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxkd import check, moments
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
    return _lambda_returns(gamma, lambda batch: lambda_, episodic)


def _lambda_returns(gamma: Any, lambda_: Callable, episodic: bool) -> Returns:
    """`gae`, lambda from a function of the batch: a number, or [T, B] of the step after each."""

    def evaluate(reward, value, next_value, batch, context):
        chex.assert_equal_shape([reward, next_value, value[:-1]])
        counts = () if isinstance(batch.weight, tuple) else batch.weight > 0
        decay = lambda_(batch)
        if not isinstance(counts, tuple):
            decay = jnp.where(_next_counts(counts), decay, 1.0)
            value, next_value = _values_that_count(value, next_value, batch, counts)
        if episodic:
            discount = gamma * (1 - batch.terminated)
            trace = decay * discount * (1 - batch.truncated)
            delta = reward + discount * next_value - value[:-1]
        else:
            trace = jnp.broadcast_to(jnp.asarray(gamma * decay, reward.dtype), reward.shape)
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
def q_lambda(
    gamma: float | jax.Array = 0.99, lambda_: float | jax.Array = 0.65, *, watkins: bool = False
) -> Returns:
    """Peng's Q(lambda), the target of PQN: `gae` under another name.

    Peng and Williams 1994; Gallici et al. 2025. Inside an episode

    target_t = r_t + gamma (1 - terminated_t) [lambda target_{t+1}
                                               + (1 - lambda) max_a Q(next_obs_t, a)],

    at a time limit and in the last row all of the bracket is max_a Q(next_obs_t, a). That is GAE's
    A + V with V = max_a Q, which is the value of a Q network (`networks.q`).

    Args:
        gamma, lambda_: in [0, 1].
        watkins: lambda is 0 where the action of row t + 1 is not the greedy one (Watkins 1989):
            the target is of the greedy policy. Peng's cuts nothing, its target is of a mixture of
            the behaviour and the greedy policy.

    Raises:
        UsageError: at `distill`, of `watkins` with continuous actions, which are never greedy.

    >>> q_lambda(0.99, 0.65).needs_value
    True
    """
    check.number("gamma", gamma, low=0, high=1)
    check.number("lambda_", lambda_, low=0, high=1)

    def while_greedy(batch):
        if not hasattr(batch.acting.policy, "logits"):
            raise UsageError(
                "watkins=True compares actions with the greedy one, so it is for discrete actions. "
                "Drop it: Peng's Q(lambda) asks for the value alone."
            )
        greedy = (batch.acting.policy.mode() == batch.action).astype(jnp.float32)
        return lambda_ * jnp.concatenate([greedy[1:], jnp.ones_like(greedy[:1])])

    return _lambda_returns(gamma, while_greedy if watkins else lambda batch: lambda_, True)


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
def immediate() -> Returns:
    """A_t = r_t, the discount 0: each action answers for its own reward; no value is needed.

    The target is the reward too.

    >>> immediate().needs_value
    False
    """

    def evaluate(reward, value, next_value, batch, context):
        counts = True if isinstance(batch.weight, tuple) else batch.weight > 0
        return jnp.where(counts, reward, 0.0), reward

    return Returns(evaluate, needs_value=False)


@described
def group_relative(
    group_size: int,
    *,
    standardise: bool = True,
    leave_one_out: bool = False,
    rows: str = "mean",
    keep_equal: bool = True,
) -> Returns:
    """Episodes that began alike, compared by their undiscounted returns R_i; no value is needed.

    A_i = (R_i - mean_j R_j) / (std_j R_j + 1e-6), over one group: environments i with the same
    i // G. The deviation is the population's (ddof 0): sqrt(G / (G - 1)) of TRL's A. Returns that
    differ by rounding alone, 1e-6 of the rewards they are summed from, have A = 0.
    target = mean_j R_j: `td_mse` on it learns the group-relative value.

    Every update begins with a reset, and the first episode of each environment is its member's.
    What follows it has weight 0: whether a later one ends within the rollout depends on how long it
    is, and a mean over those that did is biased. A rollout longer than the longest episode is
    therefore wasted; an episode that outlives it is compared by what it has earned.

    Rows of weight 0 (a prompt) earn for R_i like any other, have advantage 0 and stay at weight 0;
    |o_i| below is the number of rows of the episode that count.

    GRPO (Shao et al. 2024) is the default; Dr. GRPO (Liu et al. 2025): standardise=False,
    rows="constant"; RLOO (Ahmadian et al. 2024): standardise=False, leave_one_out=True, rows="sum".

    Args:
        group_size: G, that of `envs.make(..., group_size=G)`.
        standardise: divides by the standard deviation; then A does not change under
            R -> a R + b, a > 0.
        leave_one_out: R_i minus the mean of the others.
        rows: how those of an episode are put together, before the mean over the episodes of a
            minibatch: "mean" over |o_i| rows, weight 1 / |o_i|; "sum", the gradient of the whole
            episode's log-probability, A times |o_i| at that weight; "constant", their sum over T,
            whatever their number. "all" is the mean over all rows of all episodes, weight 1 (Yu et
            al. 2025, DAPO). Other losses have the weight, but not the factor of A.
        keep_equal: False gives weight 0 to groups whose returns are all equal: they have nothing to
            say, and do not dilute the mean (DAPO's dynamic sampling, in static shapes: take more
            groups than should be learnt from).

    Returns:
        Returns that give (advantage, target, weight), [T, B] each.

    Raises:
        UsageError: `rows` is another word. At `distill`, where G is not the environment's, or an
            episode may be longer than a rollout. Losses must not normalise the advantage once more:
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
    if rows not in _ROWS:
        raise UsageError(f"rows must be one of {', '.join(map(repr, _ROWS))}, got {rows!r}.")

    def evaluate(reward, value, next_value, batch, context):
        chex.assert_rank([reward, batch.reset], 2)
        weight = jnp.ones_like(reward) if isinstance(batch.weight, tuple) else batch.weight
        first = jnp.cumsum(batch.reset, axis=0) < 2
        of_episode = lambda x: _sum_over_time(jnp.where(first, x, 0.0))  # [B]
        groups = (-1, group_size)
        earned, size = (of_episode(x).reshape(groups) for x in (reward, jnp.abs(reward)))
        advantage, mean, differ = _compared(earned, size, standardise, leave_one_out)
        length = of_episode(weight)
        length = jnp.where(length > 0, length, 1.0)  # where no row counts: of nobody's interest
        share, factor = _ROWS[rows](length, reward.shape[0])
        to_rows = lambda x: jnp.broadcast_to(x.reshape(1, -1), reward.shape)
        counts = first & (weight > 0)
        counts = counts if keep_equal else counts & to_rows(differ.ravel())
        advantage = jnp.where(counts, to_rows(advantage.ravel() * factor), 0.0)
        return advantage, to_rows(mean), jnp.where(counts, to_rows(share), 0.0)

    return Returns(evaluate, fresh=True, needs_value=False, group_size=int(group_size))


_ROWS = {  # weight of a row and factor of A, [B] each, from |o_i| [B] and T
    "mean": lambda length, T: (1 / length, jnp.ones_like(length)),
    "sum": lambda length, T: (1 / length, length),
    "constant": lambda length, T: (1 / length, length / T),
    "all": lambda length, T: (jnp.ones_like(length), jnp.ones_like(length)),
}


def _sum_over_time(x: jax.Array) -> jax.Array:
    """[T, B] -> [B], in pairs: the rounding grows with log T, where that of a running sum does with
    T and makes equal returns differ.
    """
    while x.shape[0] > 1:
        x = jnp.pad(x, ((0, x.shape[0] % 2), (0, 0)))
        x = x[0::2] + x[1::2]
    return x[0]


def _compared(returns, size, standardise, leave_one_out):
    """Advantage, mean return and whether a group's returns differ, [B / G, G] each, of returns that
    sum up rewards of this size.
    """
    number = returns.shape[-1]
    least = jnp.min(returns, axis=-1, keepdims=True)  # large returns keep their differences
    mean = jnp.mean(returns - least, axis=-1, keepdims=True)
    advantage = returns - least - mean
    if standardise:
        std = jnp.sqrt(jnp.mean(jnp.square(advantage), axis=-1, keepdims=True))
        advantage = advantage / (std + _EPSILON)
    if leave_one_out:
        advantage = advantage * number / (number - 1)
    differ = moments.varies(returns, jnp.ones_like(returns, bool), size=size, axis=-1)
    wide = lambda x: jnp.broadcast_to(x, returns.shape)
    return jnp.where(differ, advantage, 0.0), wide(mean + least), wide(differ)


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
