"""Stage 4, learn: sequences, shuffling, and one optimizer step a minibatch.

Legend of shapes: `T` time, `B` environments, `L` sequence length, `N` sequences in a minibatch.
The only file where the environment axis is reshaped away.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from jaxkd.base import Batch, Context, LossTerm, Outputs, Policy
from jaxkd.cpu import grad
from jaxkd.keys import scan
from jaxkd.losses.combine import only
from jaxkd.metrics import mean


class Optimization(NamedTuple):
    """The static arguments of stage 4."""

    student: Policy
    losses: dict[str, LossTerm]
    optimizer: optax.GradientTransformation
    sequence_length: int
    num_epochs: int
    num_minibatches: int
    shuffle: str


def component_key(key: jax.Array, name: str) -> jax.Array:
    """The key of a component by its name: adding one changes no other's."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


_STAGES = ("student", "env", "reset", "act", "memory", "learn")  # of `learner.py`, by their keys


def named_key(key: jax.Array, name: str) -> jax.Array:
    """The key of a component that a user named, whatever the name: no stage's."""
    return component_key(key, f"component {name}" if name in _STAGES else name)


def partition(policy: Policy, params: Any) -> tuple[Any, Any]:
    """(what the optimizer trains, what it does not), each like `params` with None for the rest."""
    trained = policy.trainable(params)
    keep = lambda wanted: jax.tree.map(lambda x, on: x if on == wanted else None, params, trained)
    return keep(True), keep(False)


def combine(trained: Any, fixed: Any) -> Any:
    """The params that `partition` divided."""
    choose = lambda ours, theirs: theirs if ours is None else ours
    return jax.tree.map(choose, trained, fixed, is_leaf=lambda x: x is None)


def total(
    losses: dict[str, LossTerm],
    loss_params: dict,
    out: Outputs,
    batch: Batch,
    context: Context,
    weighted: bool = True,
) -> tuple[jax.Array, dict]:
    """The summed, weighted means of the terms on [L, N], and each mean by name.

    A mean is 0 where every weight is 0; what a row of weight 0 would say, nan included, is not
    read, and has no gradient. `weighted=False` promises that there is no such row.
    """
    counts, means = batch.weight > 0, {}
    if weighted:
        out, batch = only(counts, out, batch)
    for name, term in losses.items():
        own = context._replace(key=component_key(context.key, name))
        loss = term.loss(loss_params[name], out, batch, own)
        counted = jnp.where(counts, batch.weight * loss, 0.0)
        means[name] = jnp.sum(counted) / jnp.maximum(jnp.sum(batch.weight), 1e-8)
    return sum(means.values(), jnp.zeros((), jnp.float32)), means


def learn(
    o: Optimization, params: Any, loss_params: dict, opt_state: Any, batch: Batch, context: Context
) -> tuple:
    """`num_epochs` passes over the batch [T, B] in shuffled minibatches [L, N].

    Returns:
        (params, loss_params, opt_state, the mean of each term over all rows, by their weights).
    """
    units = arrange(batch, o.sequence_length, o.shuffle)
    weighted = not isinstance(batch.weight, tuple)
    num_units = units.reward.shape[2]
    student_trained, fixed = partition(o.student, params)

    def loss_fn(trained, fixed, minibatch, context):
        student_trained, loss_params = trained
        params = combine(student_trained, fixed)
        _, out = o.student.unroll(params, minibatch.carry, minibatch.obs, minibatch.reset)
        return total(o.losses, loss_params, out, minibatch, context, weighted)

    def one_minibatch(state, row):
        trained, opt_state = state
        index, key = row
        minibatch, own = pick(units, index), context._replace(key=key)
        gradient, means = grad(loss_fn, has_aux=True)(trained, fixed, minibatch, own)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats
            updates, opt_state = o.optimizer.update(gradient, opt_state, trained)
        share = jnp.sum(minibatch.weight) if weighted else ()
        return (optax.apply_updates(trained, updates), opt_state), (means, share)

    def one_epoch(state, key):
        key_shuffle, key_losses = jax.random.split(key)
        if o.num_minibatches > 1:
            order = jax.random.permutation(key_shuffle, num_units)
        else:
            order = jnp.arange(num_units)
        indices = order.reshape(o.num_minibatches, -1)
        keys = jax.random.split(key_losses, o.num_minibatches)
        return scan(one_minibatch, state, (indices, keys))

    keys = jax.random.split(context.key, o.num_epochs)
    trained: Any = student_trained, loss_params
    (trained, opt_state), (means, shares) = scan(one_epoch, (trained, opt_state), keys)
    student_trained, loss_params = trained
    params = combine(student_trained, fixed)
    return params, loss_params, opt_state, {k: mean(x, shares) for k, x in means.items()}


def arrange(batch: Batch, length: int, shuffle: str) -> Batch:
    """Leaves [T, B, ...] as [L, S, U, ...]: U shuffled units of S sequences each; a carry [T / L,
    B, ...] as [1, S, U, ...].

    "env": a unit is one environment with its T / L sequences; "full": a unit is one sequence.
    """

    def split(x, steps):
        x = x.reshape((-1, steps, *x.shape[1:])).swapaxes(0, 1)
        return x.reshape((steps, 1, -1, *x.shape[3:])) if shuffle == "full" else x

    carry = jax.tree.map(lambda x: split(x, 1), batch.carry)
    return jax.tree.map(lambda x: split(x, length), batch._replace(carry=()))._replace(carry=carry)


def pick(units: Batch, index: jax.Array) -> Batch:
    """The minibatch [L, N, ...] of the units `index` [N / S]; its carry is [N, ...].

    Where nobody gives weights they are a constant, which the compiler folds away.
    """

    def gather(x):
        return _spread(
            jnp.take(x, index, axis=2, mode="clip").reshape((x.shape[0], -1, *x.shape[3:]))
        )

    carry = jax.tree.map(lambda x: gather(x)[0], units.carry)
    rows = jax.tree.map(gather, units._replace(carry=()))
    if isinstance(rows.weight, tuple):
        rows = rows._replace(weight=jnp.ones_like(rows.reset))
    return rows._replace(carry=carry)


def _spread(x: jax.Array) -> jax.Array:
    """[L, N, ...] with N along the devices of `sharding.shard`'s environments, or else each of them
    would learn from all of it.
    """
    devices = jax.sharding.get_abstract_mesh().shape.get("envs", 1)
    if devices == 1 or x.shape[1] % devices:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(PartitionSpec.UNCONSTRAINED, "envs"))
