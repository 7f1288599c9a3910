"""What is known of a learner before anything runs: who reads what, what is computed, what is
refused.

Legend of shapes: `T` time, `B` environments, `L` sequence length, `N` sequences in a minibatch.

Every component is traced on the shapes that its stage really has; nothing is compiled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd import check, description, optimize
from jaxkd import rollout as stage_1
from jaxkd.base import (
    Batch,
    Behavior,
    Context,
    Env,
    Memory,
    Outputs,
    Policy,
    Returns,
    RewardTransform,
    UsageError,
)
from jaxkd.losses.value import value_of
from jaxkd.memory import kept
from jaxkd.returns import check_groups

Spec = tuple[Outputs, Batch]  # of ShapeDtypeStructs
Reads = dict[str, frozenset[str]]  # dotted paths by component, "loss 'kl'", "reward 'rnd'", ...

_EARNED = "batch.advantage", "batch.target", "batch.targets"  # what stage 3 makes


class Parts(NamedTuple):
    """The static parts of a learner: what was given, and what `assemble` found out about it."""

    rollout: stage_1.Rollout
    rewards: dict[str, RewardTransform]
    returns: dict[str, Returns]
    memory: Memory
    optimization: optimize.Optimization
    # found out:
    acted: Any = None  # Spec [T, B] behind stage 1, what reward transforms begin with
    earned: Any = None  # Spec [T, B] behind stage 3, what losses begin with
    reads: Reads = {}
    needs: stage_1.Needs = stage_1.Needs()
    earns: bool = True  # stage 3 runs
    kept: frozenset[str] | None = None  # leaves that a memory that replays is given; None: all


def assemble(given: Parts) -> Parts:
    """`given` with the rest of its fields.

    Raises:
        UsageError: for whatever cannot work together.
    """
    _check_sizes(given)
    _check_policies(given)
    acted = _acted(given)
    paid = acted._replace(streams=dict.fromkeys(_streams(given), acted.reward))
    by_returns, weigh = _returns_read(given, paid)
    earned = _earned(given, paid, weigh)
    reads = _losses_read(given, earned)
    _check_streams(given, reads, earned.acting)
    reads |= _rewards_read(given, acted) | by_returns
    _check_teacher(given, reads)
    _check_optimizer(given.optimization, earned)
    specs = dict(acted=(acted.acting, acted), earned=(earned.acting, earned))
    return _planned(given._replace(**specs, reads=reads))


# --- shapes, stage by stage ---------------------------------------------------------------------


def _acted(parts: Parts) -> Batch:
    """The batch [T, B] behind stage 1; a missing teacher looks like the student."""
    o = parts.rollout

    def act(key):
        own = lambda name: optimize.component_key(key, name)
        params = o.student.init(own("student"))
        teacher_params = o.teacher.init(own("teacher")) if o.teacher else ()
        context, actors = _context(own("act")), stage_1.start(o, own("env"))
        batch = stage_1.act(o, stage_1.Needs(), params, teacher_params, actors, context)[1]
        if o.teacher is None:
            batch = batch._replace(teacher=batch.acting, teacher_next=batch.acting_next)
        return batch

    return jax.eval_shape(act, jax.random.key(0))


def _earned(parts: Parts, paid: Batch, weigh: bool) -> Batch:
    """The batch [T, B] behind stage 3; `weigh`: returns give weights."""
    row = paid.reward
    targets = dict.fromkeys(parts.returns, row)
    weight = row if weigh else paid.weight
    return paid._replace(targets=targets, target=row, advantage=row, weight=weight)


def _minibatch(parts: Parts, batch: Batch) -> Batch:
    """The batch as a loss sees it, [L, N]."""
    o = parts.optimization

    def pick(batch):
        units = optimize.arrange(batch, o.sequence_length, o.shuffle)
        return optimize.pick(units, jnp.arange(units.reward.shape[2] // o.num_minibatches))

    return jax.eval_shape(pick, batch)


def _context(key: jax.Array) -> Context:
    return Context(jnp.int32(0), jnp.float32(0), (), key)


def _streams(parts: Parts) -> list[str]:
    return list({"": None} | {transform.stream: None for transform in parts.rewards.values()})


# --- who reads what -----------------------------------------------------------------------------


def _losses_read(parts: Parts, earned: Batch) -> Reads:
    key, spec, batch = jax.random.key(0), (earned.acting, earned), _minibatch(parts, earned)
    found = {}
    for name, term in parts.optimization.losses.items():
        params = jax.eval_shape(lambda key, term=term: term.init(key, spec), key)
        args = dict(params=params, student=batch.acting, batch=batch, context=_context(key))
        out, found[f"loss {name!r}"] = check.traced(f"loss {name!r}", term.loss, **args)
        shape = getattr(out, "shape", None)
        if shape != batch.reward.shape:
            raise UsageError(
                f"loss {name!r} must return one number a sample, shape [L, N] = "
                f"{batch.reward.shape}, got {out if shape is None else shape}. "
                f"Take sums over the last axes only: the engine averages."
            )
    return found


def _rewards_read(parts: Parts, acted: Batch) -> Reads:
    key, spec, found = jax.random.key(0), (acted.acting, acted), {}
    for name, transform in parts.rewards.items():
        state = jax.eval_shape(lambda key, made=transform: made.init(key, spec), key)
        args = dict(reward=acted.reward, state=state, batch=acted, context=_context(key))
        who = f"reward {name!r}"
        (out, _), found[who] = check.traced(who, transform.update, **args)
        if out.shape != acted.reward.shape:
            raise UsageError(
                f"{who} must return rewards [T, B] = {acted.reward.shape}, got {out.shape}."
            )
    return found


def _returns_read(parts: Parts, paid: Batch) -> tuple[Reads, bool]:
    """And whether some of them weigh rows."""
    row, found, weigh = paid.reward, {}, False
    more = jax.ShapeDtypeStruct((row.shape[0] + 1, row.shape[1]), row.dtype)  # [T + 1, B]
    for stream, returns in parts.returns.items():
        value, following = (more, row) if returns.needs_value else ((), ())
        args: dict[str, Any] = dict(reward=row, value=value, next_value=following, batch=paid)
        who = f"returns {stream!r}"
        context = _context(jax.random.key(0))
        out, found[who] = check.traced(who, returns.evaluate, **args, context=context)
        weigh = weigh or len(out) > 2
    return found, weigh


def _planned(parts: Parts) -> Parts:
    """What is computed and kept, because a component reads it."""
    everything = frozenset().union(*parts.reads.values())
    earns = check.touches(everything, *_EARNED)
    valued = any(returns.needs_value for returns in parts.returns.values())
    values = check.touches(everything, "batch.acting_next") or (earns and valued)
    teacher = parts.rollout.teacher is not None
    teacher_next = teacher and check.touches(everything, "batch.teacher_next")
    needs = stage_1.Needs(
        acting=values or check.touches(everything, "batch.acting"),
        next_obs=check.touches(everything, "batch.next_obs"),
        acting_next=values,
        teacher=teacher and (teacher_next or check.touches(everything, "batch.teacher")),
        teacher_next=teacher_next,
    )
    by_losses = {who: paths for who, paths in parts.reads.items() if who.startswith("loss")}
    return parts._replace(needs=needs, earns=earns, kept=kept(parts.memory, by_losses))


def complete(parts: Parts, batch: Batch) -> Batch:
    """`batch` with zeros for what nothing reads, so that shapes stay known; never computed."""
    unread = [field for field, needed in parts.needs._asdict().items() if not needed]
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
    return batch._replace(**{field: zeros(getattr(parts.earned[1], field)) for field in unread})


# --- what is refused ----------------------------------------------------------------------------


def check_kinds(
    env: Any,
    student: Any,
    teacher: Any,
    losses: Any,
    rewards: Any,
    behavior: Any,
    returns: Any,
    memory: Any,
) -> None:
    """Raises unless the arguments of `distill` are the records they should be."""
    check.kind("env", env, Env, "an Env (jaxkd.envs.make)")
    check.kind("student", student, Policy, "a Policy (jaxkd.networks.mlp and others)")
    if teacher is not None:
        check.kind("teacher", teacher, Policy, "a Policy (its params are the input of run)")
    if not isinstance(losses, dict) or not losses:
        raise UsageError(
            f"losses must be a dict with at least one term, such as "
            f"{{'kl': jaxkd.losses.forward_kl()}}, got {losses!r}."
        )
    check.kind("rewards", rewards, dict, "a dict of RewardTransforms by name")
    for name, transform in rewards.items():
        what = "a RewardTransform (jaxkd.rewards)"
        check.kind(f"reward {name!r}", transform, RewardTransform, what)
    for stream, value in (returns if isinstance(returns, dict) else {"": returns}).items():
        what = "a Returns (jaxkd.returns.gae and others)"
        check.kind(f"returns {stream!r}", value, Returns, what)
    if behavior is not None:
        what = "a Behavior (jaxkd.behavior.mixture and others)"
        check.kind("behavior", behavior, Behavior, what)
    if memory is not None:
        check.kind("memory", memory, Memory, "a Memory (jaxkd.memory)")


def _check_sizes(parts: Parts) -> None:
    o, length = parts.optimization, parts.rollout.unroll_length
    check.count("unroll_length", length)
    for name in ("sequence_length", "num_epochs", "num_minibatches"):
        check.count(name, getattr(o, name))
    check.divides("sequence_length", o.sequence_length, "unroll_length", length)
    if o.shuffle not in ("env", "full"):
        raise UsageError(f"shuffle must be 'env' or 'full', got {o.shuffle!r}.")
    num_envs = parts.rollout.env.num_envs
    if o.shuffle == "env":
        whole = "num_envs", num_envs
    else:
        whole = "the number of sequences", num_envs * length // o.sequence_length
    check.divides("num_minibatches", o.num_minibatches, *whole)
    what = "an optax transformation such as optax.adam(1e-3)"
    check.kind("optimizer", o.optimizer, optax.GradientTransformation, what)
    check_groups(parts.returns, parts.rollout.env, length)


def _check_optimizer(o: optimize.Optimization, earned: Batch) -> None:
    """It makes updates of gradients and parameters alone."""

    def stepped(key):
        spec = earned.acting, earned
        loss_params = {name: term.init(key, spec) for name, term in o.losses.items()}
        trained = optimize.partition(o.student, o.student.init(key))[0], loss_params
        with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats
            return o.optimizer.update(trained, o.optimizer.init(trained), trained)

    try:
        jax.eval_shape(stepped, jax.random.key(0))
    except Exception as error:  # whatever the transformation raises
        raise UsageError(
            f"optimizer fails on gradients and parameters: {check.line(error)} "
            f"What needs the loss as well (optax.contrib.reduce_on_plateau, optax.lbfgs) cannot be "
            f"used: take a schedule."
        ) from error


def _check_policies(parts: Parts) -> None:
    o = parts.rollout
    check.fits("student", o.student, o.env)
    if o.teacher is not None:
        check.fits("teacher", o.teacher, o.env)
    elif o.behavior.needs_teacher:
        raise UsageError(
            f"behavior {description.show(o.behavior)} needs a teacher, but teacher=None. "
            f"Pass one, or use student_acts()."
        )


def _check_teacher(parts: Parts, reads: Reads) -> None:
    if parts.rollout.teacher is not None:
        return
    for who, paths in reads.items():
        if check.touches(paths, "batch.teacher", "batch.teacher_next"):
            raise UsageError(
                f"{who} reads the teacher, but teacher=None. "
                f"Pass the teacher's policy after the student's."
            )


def _check_streams(parts: Parts, by_losses: Reads, acting: Outputs) -> None:
    """Every stream that is paid has returns, and the other way round; what is paid is read."""
    earning = [who for who, paths in by_losses.items() if check.touches(paths, *_EARNED)]
    watched = any(check.touches(paths, "batch.streams") for paths in by_losses.values())
    if parts.rewards and not earning and not watched:
        raise UsageError(
            f"rewards {set(parts.rewards)} have no effect: no loss reads advantage or target. Add "
            f"one that does, such as losses.ppo_clip() with losses.td_mse(), or drop the rewards."
        )
    for name, transform in parts.rewards.items():
        if transform.stream not in parts.returns:
            raise UsageError(
                f"reward {name!r} pays into stream {transform.stream!r}, "
                f"but returns has {set(parts.returns)}. Add returns for it."
            )
    opened = set(_streams(parts))
    for stream, returns in parts.returns.items():
        if stream not in opened:
            raise UsageError(
                f"returns names stream {stream!r}, but no reward transform pays into it "
                f"(streams: {opened})."
            )
        if earning and returns.needs_value:
            head: Callable = lambda out, stream=stream: value_of(out, "student", stream)
            check.traced(f"{earning[0]} by way of returns {stream!r}", head, outputs=acting)


def check_inputs(parts: Parts, inputs: tuple) -> Any:
    """The one input of `step`, the teacher's params, or () without a teacher."""
    teacher = parts.rollout.teacher
    if len(inputs) != (teacher is not None):
        fix = "it takes no further inputs"
        if teacher:
            fix = "pass its params: run(algorithm, key, num_updates, teacher_params)"
        has = "a" if teacher else "no"
        raise UsageError(f"this algorithm has {has} teacher and got {len(inputs)} inputs; {fix}.")
    if teacher is None:
        return ()
    many = "lanes(algorithm, shared=False) takes a teacher for each key."
    check.params("the teacher's params", inputs[0], teacher, many)
    return inputs[0]
