"""What the learner learns from: factories of `Memory`, and what a memory that replays is given.

Legend of shapes: `T` time, `L` sequence length, `B` environments, `C` capacity in rollouts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Batch, Memory, UsageError
from jaxkd.description import described, show

_OF_WHO_ACTED = ("acting", "acting_next", "advantage", "target", "targets")
_ALWAYS = ("obs", "reset", "carry", "weight")  # what unrolling the student and taking means need


class Ring(NamedTuple):
    """The last C rollouts."""

    actors: Batch  # leaves [B, C, T, ...], a carry [B, C, T / L, ...]
    added: jax.Array  # int32 [], rollouts since the beginning


@described
def this_rollout() -> Memory:
    """No memory: the fresh rollout, with everything that was recorded of the policy that acted.

    >>> this_rollout().replays
    False
    """
    return Memory(
        init=lambda spec: (),
        add=lambda buffer, batch: buffer,
        sample=lambda key, buffer, batch: batch,
    )


@described
def ring(capacity: int) -> Memory:
    """The last `capacity` rollouts on the device.

    An update learns from one rollout's worth of them, uniform over all that is there.
    Each environment's column of a sample is that environment's in one of the stored rollouts, drawn
    independently of the other columns. Learning from the aggregate of all rollouts is what DAgger
    is (Ross et al. 2011); with `behavior.teacher_acts()` it is the replay of policy distillation
    (Rusu et al. 2015).

    The labels are those given when a row was recorded: a teacher's do not change. A recurrent
    student goes on from the carry that it had then, which its present parameters would not have
    reached (Kapturowski et al. 2019); whole episodes a sequence avoid that.

    Args:
        capacity: C, rollouts. Stored is what some loss reads, in its own dtype, with observations,
            resets and weights: C * T * B rows.

    Raises:
        UsageError: at `distill`, where a loss reads what belongs to the policy that acted just now.

    >>> ring(32).replays
    True
    """
    check.count("capacity", capacity)

    def init(spec):
        def empty(x):
            return jnp.zeros((x.shape[1], capacity, x.shape[0], *x.shape[2:]), x.dtype)

        return Ring(jax.tree.map(empty, spec), jnp.int32(0))

    def add(buffer, batch):
        slot = buffer.added % capacity
        actors = jax.tree.map(
            lambda old, new: old.at[:, slot].set(new.swapaxes(0, 1)), buffer.actors, batch
        )
        return Ring(actors, buffer.added + 1)

    def sample(key, buffer, batch):
        there = jnp.minimum(buffer.added, capacity)
        slots = jax.random.randint(key, batch.reset.shape[1:], 0, there, jnp.int32)  # [B]
        pick = jax.vmap(
            lambda column, slot: column[slot], in_axes=0, out_axes=1
        )  # [B, C] to [T, B]
        return jax.tree.map(lambda x: pick(x, slots), buffer.actors)

    return Memory(init, add, sample, replays=True)


@described
def dataset(**rows: Any) -> Memory:
    """Sequences that were written before, such as right answers or a teacher's; nothing is added.

    An update learns from B columns of them, drawn with replacement; what was just played is not
    looked at, so play little of it (`unroll_length` is that of the data).

    Args:
        rows: fields of a `Batch` by name, [T, M, ...] each: "obs" and "reset", what the losses read
            ("action"; "teacher", Outputs of a teacher that was asked before), and "weight", default
            1. Every column begins with a reset.

    Raises:
        UsageError: at `distill`, where a loss reads what is not there, or shapes do not fit.

    >>> from jaxkd.envs import tasks, tokens
    >>> rows = tokens.demonstrations(tasks.addition(3), jax.random.key(0), 100)
    >>> dataset(**rows).replays
    True
    """
    missing = {"obs", "reset"} - set(rows)
    if missing:
        raise UsageError(f"a data set needs obs and reset, got {', '.join(rows) or 'nothing'}.")
    data: Any = {name: jax.tree.map(jnp.asarray, x) for name, x in rows.items()}
    data = {"weight": jnp.ones_like(data["reset"])} | data

    def init(spec):
        given = spec._asdict()
        read = [k for k in given if k not in ("carry", "weight") and jax.tree.leaves(given[k])]
        return {name: _columns(data, name, given[name]) for name in read} | {
            "weight": data["weight"]
        }

    def sample(key, buffer, batch):
        column = jax.random.randint(key, batch.reset.shape[1:], 0, data["reset"].shape[1])
        drawn = jax.tree.map(lambda x: jnp.take(x, column, axis=1), buffer)
        begin = jax.tree.map(jnp.zeros_like, batch.carry)
        return batch._replace(carry=begin, **drawn)

    return Memory(init, lambda buffer, batch: buffer, sample, replays=True)


def _columns(data: dict[str, Any], name: str, spec: Any) -> Any:
    """The data's field [T, M, ...], of it what is read; `spec` is [T, B, ...]."""
    path = lambda key: jax.tree_util.keystr(key, simple=True, separator=".")
    leaves = jax.tree_util.tree_flatten_with_path(data.get(name, ()))[0]
    found = {path(key): x for key, x in leaves}

    def one(key, wanted):
        where = f"{name}.{path(key)}".rstrip(".")
        if path(key) not in found:
            raise UsageError(
                f"a loss reads {where}, which the data set does not hold ({', '.join(data)}). "
                f"Add it, [T, M, ...], or drop the loss."
            )
        x = found[path(key)]
        if (x.shape[0], *x.shape[2:]) != (wanted.shape[0], *wanted.shape[2:]):
            raise UsageError(
                f"{where} of the data set is {x.shape}, but a rollout's is {wanted.shape}: all but "
                f"the second number must be equal. Take unroll_length={x.shape[0]}, and data of "
                f"this environment."
            )
        return x

    return jax.tree_util.tree_map_with_path(one, spec)


# --- what is recorded -----------------------------------------------------------------------------


def kept(memory: Memory, reads: dict[str, frozenset[str]]) -> frozenset[str] | None:
    """The leaves of the batch that the memory stores: those that a loss reads.

    None where it replays nothing: all of them.

    Args:
        reads: what each loss reads, by its name, as `check.reads` says it
            ("batch.teacher.policy.logits").

    Raises:
        UsageError: where a loss reads what an older rollout cannot have.
    """
    if not memory.replays:
        return None
    for name, paths in reads.items():
        fresh = [field for field in _OF_WHO_ACTED if check.touches(paths, f"batch.{field}")]
        if fresh:
            raise UsageError(
                f"{name} reads {', '.join(fresh)}, which belong to the policy that acted just now, "
                f"but memory={show(memory)} replays older rollouts. "
                f"Drop the memory, or the loss."
            )
    return frozenset(
        path.removeprefix("batch.")
        for paths in reads.values()
        for path in paths
        if path.startswith("batch.")
    )


def record(batch: Batch, kept: frozenset[str] | None) -> Batch:
    """`batch` with () for every leaf that is not kept, and for every field of which nothing is."""
    if kept is None:
        return batch
    leaves = jax.tree_util.tree_map_with_path(
        lambda path, x: x if _is_kept(path, kept) else (), batch
    )
    return Batch._make(field if jax.tree.leaves(field) else () for field in leaves)


def restore(sample: Batch, spec: Batch, kept: frozenset[str] | None) -> Batch:
    """`sample`, recorded, with zeros for what nothing reads, so that shapes stay known.

    What belongs to the policy that acted is (). A sample may weigh rows that were recorded without.
    """
    if kept is None:
        return sample
    recorded = record(spec, kept)
    if isinstance(sample, Batch) and jax.tree.leaves(sample.weight):
        recorded, spec = (batch._replace(weight=spec.reset) for batch in (recorded, spec))
    given, wanted = (jax.tree.map(jnp.shape, batch) for batch in (sample, recorded))
    if given != wanted:
        raise UsageError(
            f"the memory's sample must have the shapes of the recorded batch, {wanted}, "
            f"got {given}."
        )
    leaves = iter(jax.tree.leaves(sample))

    def fill(path, x):
        return next(leaves) if _is_kept(path, kept) else jnp.zeros(x.shape, x.dtype)

    whole = jax.tree_util.tree_map_with_path(fill, spec)
    return whole._replace(**dict.fromkeys(_OF_WHO_ACTED, ()))


def _is_kept(path: tuple, kept: frozenset[str]) -> bool:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return name in kept or name.split(".")[0] in _ALWAYS
