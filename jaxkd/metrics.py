"""Stage 5, report: a flat dict of scalars about the fresh rollout; it belongs to whoever acted."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.base import Actors, Batch, Env


def report(env: Env, actors: Actors, batch: Batch, means: dict, paid: dict) -> dict[str, jax.Array]:
    """Metrics "return", "episodes", "not_finite", "return/<task>", "loss/<name>", "reward/<name>".

    Each is []. "not_finite" counts the environments whose last episode had a return of nan or inf,
    which "return" leaves out. "counted", where rows have weights, is the share of them above 0:
    what is left without prompts, padding, and groups that were dropped.

    Args:
        means: the mean of each loss over all minibatches, by name.
        paid: the mean reward behind each transform, by name.
    """
    episodes = jnp.sum(batch.terminated + batch.truncated)
    not_finite = jnp.sum(jnp.isposinf(actors.last_return), dtype=jnp.float32)
    found = {"return": mean_return(actors), "episodes": episodes, "not_finite": not_finite}
    if jax.tree.leaves(batch.weight):
        found["counted"] = jnp.mean((batch.weight > 0).astype(jnp.float32))
    for i, task in enumerate(env.tasks):
        alone = jnp.where(actors.obs["task"] == i, actors.last_return, -jnp.inf)
        found[f"return/{task}"] = mean_return(actors._replace(last_return=alone))
    found |= {f"loss/{name}": mean for name, mean in means.items()}
    return found | {f"reward/{name}": mean for name, mean in paid.items()}


def mean_return(actors: Actors) -> jax.Array:
    """Mean over environments of each one's last finished episode []; -inf before the first.

    Not nan, which would blind `jax_debug_nans`; and less than any return, so that a gate that
    compares it takes whoever acts for a beginner.
    """
    ended = jnp.isfinite(actors.last_return)
    number = jnp.sum(ended, dtype=jnp.float32)
    total = jnp.sum(jnp.where(ended, actors.last_return, 0.0))
    return jnp.where(number > 0, total / jnp.maximum(number, 1.0), -jnp.inf)


def mean(x: jax.Array, weight: Any) -> jax.Array:
    """The mean of x [T, B] over rows that count, weight [T, B]; over all where it is ()."""
    if not jax.tree.leaves(weight):
        return jnp.mean(x)
    return jnp.sum(jnp.where(weight > 0, weight * x, 0.0)) / jnp.maximum(jnp.sum(weight), 1e-8)
