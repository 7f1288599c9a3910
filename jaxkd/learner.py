"""The one learner: every method of this library is `learner` with other arguments.

`step` has five stages: act (`rollout.py`), relabel (`rewards/`), evaluate (`returns.py`), learn (`optimize.py`), report.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd import check, optimize, rollout
from jaxkd.base import (
    Algorithm,
    Batch,
    Behavior,
    Context,
    Env,
    LossTerm,
    Memory,
    Outputs,
    Policy,
    Returns,
    RewardTransform,
    State,
    UsageError,
)
from jaxkd.behavior import student_acts
from jaxkd.losses import stateless
from jaxkd.losses.value import value_of
from jaxkd.memory import kept, record, restore, this_rollout
from jaxkd.optimize import component_key
from jaxkd.returns import check_groups, gae

_DEFAULT_RETURNS = gae(0.99, 0.95)
_DEFAULT_OPTIMIZER = optax.adam(1e-3)


class Learner(NamedTuple):
    """The static parts of an assembled learner."""

    rollout: rollout.Rollout
    rewards: dict[str, RewardTransform]
    returns: dict[str, Returns]
    memory: Memory
    optimization: optimize.Optimization


class Plan(NamedTuple):
    """What is computed and kept, because a component reads it."""

    needs: rollout.Needs
    earns: bool  # stage 3 runs
    kept: frozenset[str] | None  # leaves of the batch that go into a memory that replays; None: all


def learner(
    env: Env,
    student: Policy,
    teacher: Policy | None = None,
    *,
    losses: Mapping[str, LossTerm | Callable],
    rewards: dict[str, RewardTransform] | None = None,
    behavior: Behavior | None = None,
    returns: Returns | dict[str, Returns] = _DEFAULT_RETURNS,
    memory: Memory | None = None,
    optimizer: optax.GradientTransformation = _DEFAULT_OPTIMIZER,
    unroll_length: int = 32,
    sequence_length: int | None = None,
    num_epochs: int = 1,
    num_minibatches: int = 4,
    shuffle: str = "env",
) -> Algorithm:
    """Distils a teacher into a student, or trains a student without one: an `Algorithm` for `run` and `stream`.

    Args:
        env: a batch of B environments, `envs.make(...)`.
        student, teacher: policies; the teacher's params are the input of `run(algorithm, key, num_updates, teacher_params)`.
        losses: terms by name, summed; a bare function `(student, batch[, context]) -> [L, N]` is one too.
        rewards: transforms by name, chained in this order.
        behavior: who acts; default the student, sampled.
        returns: of the environment's reward stream, or a dict by stream; advantages are summed.
        memory: what is learnt from; default this rollout.
        optimizer: of the student's and the terms' parameters together, one step a minibatch.
        unroll_length: T, steps of every environment an update.
        sequence_length: L, of a recurrent student's sequences; default 1, or T for a recurrent student.
        num_epochs, num_minibatches: passes over the batch, and its parts.
        shuffle: "env" keeps an environment's rows together, "full" mixes all sequences (PPO with an MLP then took 1.3 to 1.6 times as long,
            benchmarks/speed/throughput.py on two CPU cores).

    Raises:
        UsageError: for whatever cannot work together, before anything is compiled.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> teacher, student = jaxkd.networks.mlp(env, (16,)), jaxkd.networks.mlp(env, (4,))
    >>> kd = jaxkd.distill(env, student, teacher, losses={"kl": jaxkd.losses.forward_kl()})
    """
    _check_kinds(env, student, teacher, losses, rewards or {}, behavior, returns, memory)
    terms = {
        name: term if isinstance(term, LossTerm) else stateless(term)
        for name, term in losses.items()
    }
    recurrent = jax.tree.leaves(jax.eval_shape(lambda: student.initial_carry(1)))
    length = (unroll_length if recurrent else 1) if sequence_length is None else sequence_length
    parts = Learner(
        rollout.Rollout(env, student, teacher, behavior or student_acts(), unroll_length, length),
        dict(rewards or {}),
        {"": returns} if isinstance(returns, Returns) else dict(returns),
        memory or this_rollout(),
        optimize.Optimization(
            student, terms, optimizer, length, num_epochs, num_minibatches, shuffle
        ),
    )
    _check_sizes(parts)
    _check_policies(parts)
    spec = _spec(parts)
    read = _check_reads(parts, spec)
    plan = _plan(parts, read)
    return Algorithm(
        lambda key: init(parts, spec, plan, key),
        lambda state, *inputs: step(parts, spec, plan, state, _teacher_params(parts, inputs)),
        _description(parts, read),
    )


def init(parts: Learner, spec: tuple[Outputs, Batch], plan: Plan, key: jax.Array) -> State:
    """The state before the first update."""
    params = parts.rollout.student.init(component_key(key, "student"))
    losses = {
        name: term.init(component_key(key, name), spec)
        for name, term in parts.optimization.losses.items()
    }
    return State(
        params=params,
        loss_params=losses,
        opt_state=parts.optimization.optimizer.init((params, losses)),
        rewards={
            name: transform.init(component_key(key, name), spec)
            for name, transform in parts.rewards.items()
        },
        memory=parts.memory.init(record(spec[1], plan.kept)),
        actors=rollout.start(parts.rollout, component_key(key, "env")),
        update=jnp.int32(0),
        key=key,
    )


def step(
    parts: Learner, spec: tuple[Outputs, Batch], plan: Plan, state: State, teacher_params: Any
) -> tuple[State, dict]:
    """One update."""
    key = jax.random.fold_in(state.key, state.update)
    context = Context(state.update, _mean_last_return(state.actors), (), key)

    def own(name):
        return context._replace(key=component_key(key, name))

    actors = state.actors
    if any(returns.fresh for returns in parts.returns.values()):
        actors = rollout.start(parts.rollout, own("reset").key)._replace(
            last_return=actors.last_return
        )
    actors, batch, last = rollout.act(
        parts.rollout, plan.needs, state.params, teacher_params, actors, own("act")
    )
    batch = _complete(batch, spec, plan.needs)
    batch, reward_states, paid = relabel(parts, state.rewards, batch, context)
    batch = jax.lax.stop_gradient(evaluate(parts, batch, last, plan, context))
    recorded = record(batch, plan.kept)
    memory = parts.memory.add(state.memory, recorded)
    sample = restore(parts.memory.sample(own("memory").key, memory, recorded), spec[1], plan.kept)
    trained = state.params, state.loss_params, state.opt_state
    params, loss_params, opt_state, means = optimize.learn(
        parts.optimization, *trained, sample, own("learn")
    )
    params = parts.rollout.student.observe(params, batch.obs)
    after = State(
        params, loss_params, opt_state, reward_states, memory, actors, state.update + 1, state.key
    )
    return after, report(parts.rollout.env, actors, batch, means, paid)


# --- the stages that have no file of their own ----------------------------------------------------------------------


def relabel(
    parts: Learner, states: dict, batch: Batch, context: Context
) -> tuple[Batch, dict, dict]:
    """Stage 2: each transform in order, on its stream. Returns the batch with `streams`, the new states, the mean rewards."""
    streams, after, paid = {"": batch.reward}, {}, {}
    for name, transform in parts.rewards.items():
        reward = streams.get(transform.stream, jnp.zeros_like(batch.reward))
        own = context._replace(key=component_key(context.key, name))
        streams[transform.stream], after[name] = transform.update(reward, states[name], batch, own)
        paid[name] = jnp.mean(streams[transform.stream])
    return batch._replace(streams=streams), after, paid


def evaluate(parts: Learner, batch: Batch, last: Outputs, plan: Plan, context: Context) -> Batch:
    """Stage 3: one `Returns` a stream; advantages are summed, weights multiplied. Skipped where nothing reads them."""
    if not plan.earns:
        return batch._replace(weight=jnp.ones_like(batch.reward))
    advantage, weight, targets = jnp.zeros_like(batch.reward), jnp.ones_like(batch.reward), {}
    for stream, returns in parts.returns.items():
        value, following = (), ()
        if returns.needs_value:
            acting, following, final = (
                out.extra[stream] if stream else out.value
                for out in (batch.acting, batch.acting_next, last)
            )
            value = jnp.concatenate([acting, final[None]])
        gain, targets[stream], *share = returns.evaluate(
            batch.streams[stream], value, following, batch, context
        )
        advantage = advantage + gain
        weight = weight * share[0] if share else weight
    return batch._replace(
        targets=targets, target=targets.get("", ()), advantage=advantage, weight=weight
    )


def report(env: Env, actors: Any, batch: Batch, means: dict, paid: dict) -> dict[str, jax.Array]:
    """Stage 5: scalars of the fresh rollout; it belongs to whoever acted."""
    metrics = {
        "return": _mean_last_return(actors),
        "episodes": jnp.sum(batch.terminated + batch.truncated),
    }
    for i, task in enumerate(env.tasks):
        alone = jnp.where(actors.obs["task"] == i, actors.last_return, jnp.nan)
        metrics[f"return/{task}"] = _mean_last_return(actors._replace(last_return=alone))
    metrics |= {f"loss/{name}": mean for name, mean in means.items()}
    return metrics | {f"reward/{name}": mean for name, mean in paid.items()}


def _mean_last_return(actors: Any) -> jax.Array:
    ended = ~jnp.isnan(actors.last_return)
    return jnp.sum(jnp.where(ended, actors.last_return, 0.0)) / jnp.sum(ended)


def _complete(batch: Batch, spec: tuple[Outputs, Batch], needs: rollout.Needs) -> Batch:
    """Zeros for the fields that nothing reads, so that their shapes stay known; they are never computed."""
    unread = [field for field, needed in needs._asdict().items() if not needed]
    return batch._replace(
        **{
            field: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), getattr(spec[1], field))
            for field in unread
        }
    )


# --- what is known before anything runs -----------------------------------------------------------------------------


def _spec(parts: Learner) -> tuple[Outputs, Batch]:
    """(Outputs, Batch) [T, B] of ShapeDtypeStructs, as terms and transforms see them; a missing teacher looks like the student."""
    o = parts.rollout

    def stages(key):
        params = o.student.init(key)
        teacher_params = o.teacher.init(key) if o.teacher else ()
        context = Context(jnp.int32(0), jnp.float32(0), (), key)
        actors, batch, last = rollout.act(
            o, rollout.Needs(), params, teacher_params, rollout.start(o, key), context
        )
        if o.teacher is None:
            batch = batch._replace(teacher=batch.acting, teacher_next=batch.acting_next)
        names = {"", *(transform.stream for transform in parts.rewards.values())}
        rewards = {name: batch.reward for name in names}
        per_row = dict(target=batch.reward, advantage=batch.reward, weight=batch.reward)
        return batch.acting, batch._replace(
            streams=rewards, targets={name: batch.reward for name in parts.returns}, **per_row
        )

    return jax.eval_shape(stages, jax.random.key(0))


def _minibatch_spec(parts: Learner, spec: tuple[Outputs, Batch]) -> tuple[Outputs, Batch]:
    """The same in [L, N], as a loss sees them."""
    o = parts.optimization

    def minibatch(batch):
        units = optimize.arrange(batch, o.sequence_length, o.shuffle)
        return optimize.pick(units, jnp.arange(units.reward.shape[2] // o.num_minibatches))

    batch = jax.eval_shape(minibatch, spec[1])
    return batch.acting, batch


def _plan(parts: Learner, read: dict[str, frozenset]) -> Plan:
    union = frozenset().union(*read.values())
    earns = check.touches(union, "batch.advantage", "batch.target", "batch.targets")
    values = check.touches(union, "batch.acting_next") or (
        earns and any(returns.needs_value for returns in parts.returns.values())
    )
    teacher = parts.rollout.teacher is not None
    teacher_next = teacher and check.touches(union, "batch.teacher_next")
    needs = rollout.Needs(
        acting=values or check.touches(union, "batch.acting"),
        next_obs=check.touches(union, "batch.next_obs"),
        acting_next=values,
        teacher=teacher and (teacher_next or check.touches(union, "batch.teacher")),
        teacher_next=teacher_next,
    )
    return Plan(needs, earns, kept(parts.memory, _by_losses(read)))


def _description(parts: Learner, read: dict[str, frozenset]) -> tuple:
    o = parts.rollout
    fields = {
        name: ", ".join(sorted({check.field(path) for path in paths if path[0] in "bs"}))
        for name, paths in read.items()
    }
    rows = [
        ("loss", name, check.label(term), fields[f"loss {name!r}"])
        for name, term in parts.optimization.losses.items()
    ]
    rows += [
        ("reward", name, f"{check.label(t)} of stream {t.stream!r}", fields[f"reward {name!r}"])
        for name, t in parts.rewards.items()
    ]
    rows += [
        ("returns", name, check.label(r), fields[f"returns {name!r}"])
        for name, r in parts.returns.items()
    ]
    rows += [
        ("behavior", "", check.label(o.behavior.act), ""),
        ("memory", "", check.label(parts.memory), ""),
    ]
    sizes = dict(
        num_envs=o.env.num_envs, unroll_length=o.unroll_length, sequence_length=o.sequence_length
    )
    sizes |= {
        k: getattr(parts.optimization, k) for k in ("num_epochs", "num_minibatches", "shuffle")
    }
    who = dict(
        env=o.env.name,
        student=o.student.description,
        teacher=o.teacher.description if o.teacher else (),
    )
    return "distill", (*who.items(), *sizes.items(), ("components", tuple(rows)))


def describe(algorithm: Algorithm) -> None:
    """Prints how an algorithm was assembled: its sizes, and every component with its settings and what it reads.

    A reward is paid into a stream, which `returns` of that name turn into their share of `batch.advantage` and into `batch.targets` of that name.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> describe(jaxkd.ppo(env, jaxkd.networks.mlp(env, (8,))))             # doctest: +ELLIPSIS
    distill on CartPole-v1...
    """
    name, keywords = algorithm.description
    values = dict(keywords)
    components = values.pop("components")
    print(f"{name} on {values.pop('env')}")
    for key, value in values.items():
        print(f"  {key:16}{value[0] if isinstance(value, tuple) and value else value}")
    for row in components:
        print(
            "  "
            + "  ".join(
                text.ljust(width) for text, width in zip(row, (8, 10, 48, 0), strict=True)
            ).rstrip()
        )


def _check_kinds(env, student, teacher, losses, rewards, behavior, returns, memory) -> None:
    check.kind("env", env, Env, "an Env (jaxkd.envs.make)")
    check.kind("student", student, Policy, "a Policy (jaxkd.networks.mlp and others)")
    if teacher is not None:
        check.kind("teacher", teacher, Policy, "a Policy (its params are the input of run)")
    if not isinstance(losses, dict) or not losses:
        raise UsageError(
            f"losses must be a dict with at least one term, such as {{'kl': jaxkd.losses.forward_kl()}}, got {losses!r}."
        )
    check.kind("rewards", rewards, dict, "a dict of RewardTransforms by name")
    for name, transform in rewards.items():
        check.kind(
            f"reward {name!r}", transform, RewardTransform, "a RewardTransform (jaxkd.rewards)"
        )
    for stream, value in (returns if isinstance(returns, dict) else {"": returns}).items():
        check.kind(
            f"returns {stream!r}", value, Returns, "a Returns (jaxkd.returns.gae and others)"
        )
    if behavior is not None:
        check.kind("behavior", behavior, Behavior, "a Behavior (jaxkd.behavior.mixture and others)")
    if memory is not None:
        check.kind("memory", memory, Memory, "a Memory (jaxkd.memory)")


def _check_sizes(parts: Learner) -> None:
    o, length = parts.optimization, parts.rollout.unroll_length
    for name, value in (
        ("unroll_length", length),
        ("sequence_length", o.sequence_length),
        ("num_epochs", o.num_epochs),
    ):
        check.count(name, value)
    check.count("num_minibatches", o.num_minibatches)
    check.divides("sequence_length", o.sequence_length, "unroll_length", length)
    if o.shuffle not in ("env", "full"):
        raise UsageError(f"shuffle must be 'env' or 'full', got {o.shuffle!r}.")
    num_envs = parts.rollout.env.num_envs
    if o.shuffle == "env":
        check.divides("num_minibatches", o.num_minibatches, "num_envs", num_envs)
    else:
        check.divides(
            "num_minibatches",
            o.num_minibatches,
            "the number of sequences",
            num_envs * length // o.sequence_length,
        )
    check.kind(
        "optimizer",
        o.optimizer,
        optax.GradientTransformation,
        "an optax transformation such as optax.adam(1e-3)",
    )
    check_groups(parts.returns, parts.rollout.env, length)


def _check_policies(parts: Learner) -> None:
    o = parts.rollout
    check.fits("student", o.student, o.env)
    if o.teacher is not None:
        check.fits("teacher", o.teacher, o.env)
    elif o.behavior.needs_teacher:
        raise UsageError(
            f"behavior {check.label(o.behavior.act)} needs a teacher, but teacher=None. Pass one, or use student_acts()."
        )


def _check_reads(parts: Learner, spec: tuple[Outputs, Batch]) -> dict[str, frozenset]:
    """What each component reads, after checking that all of it is there."""
    key, (student, batch) = jax.random.key(0), _minibatch_spec(parts, spec)
    context = Context(jnp.int32(0), jnp.float32(0), (), key)
    read = {}
    for name, term in parts.optimization.losses.items():
        params = jax.eval_shape(lambda key, term=term: term.init(key, spec), key)
        args = dict(params=params, student=student, batch=batch, context=context)
        out, read[f"loss {name!r}"] = check.traced(f"loss {name!r}", term.loss, **args)
        if getattr(out, "shape", None) != batch.reward.shape:
            raise UsageError(
                f"loss {name!r} must return one number a sample, shape [L, N] = {batch.reward.shape}, got {getattr(out, 'shape', out)}. "
                f"Take sums over the last axes only: the engine averages."
            )
    for name, transform in parts.rewards.items():
        state = jax.eval_shape(lambda key, transform=transform: transform.init(key, spec), key)
        args = dict(reward=spec[1].reward, state=state, batch=spec[1], context=context)
        (out, _), read[f"reward {name!r}"] = check.traced(
            f"reward {name!r}", transform.update, **args
        )
        if out.shape != spec[1].reward.shape:
            raise UsageError(
                f"reward {name!r} must return rewards [T, B] = {spec[1].reward.shape}, got {out.shape}."
            )
    _check_returns(parts, spec, _by_losses(read))
    rows = spec[1].reward
    for stream, returns in parts.returns.items():
        args: dict[str, Any] = dict(reward=rows, value=(), next_value=())
        if returns.needs_value:
            args |= dict(
                value=jax.ShapeDtypeStruct((rows.shape[0] + 1, rows.shape[1]), rows.dtype),
                next_value=rows,
            )
        _, read[f"returns {stream!r}"] = check.traced(
            f"returns {stream!r}", returns.evaluate, **args, batch=spec[1], context=context
        )
    for name, paths in read.items():
        if parts.rollout.teacher is None and check.touches(
            paths, "batch.teacher", "batch.teacher_next"
        ):
            raise UsageError(
                f"{name} reads the teacher, but teacher=None. Pass the teacher's policy after the student's."
            )
    return read


def _by_losses(read: dict[str, frozenset]) -> dict[str, frozenset]:
    return {name: paths for name, paths in read.items() if name.startswith("loss")}


def _check_returns(
    parts: Learner, spec: tuple[Outputs, Batch], by_losses: dict[str, frozenset]
) -> None:
    earning = [
        name
        for name, paths in by_losses.items()
        if check.touches(paths, "batch.advantage", "batch.target", "batch.targets")
    ]
    if (
        parts.rewards
        and not earning
        and not any(check.touches(paths, "batch.streams") for paths in by_losses.values())
    ):
        raise UsageError(
            f"rewards {set(parts.rewards)} have no effect: no loss reads advantage or target. "
            f"Add one that does, such as losses.ppo_clip() with losses.td_mse(), or drop the rewards."
        )
    for name, transform in parts.rewards.items():
        if transform.stream not in parts.returns:
            raise UsageError(
                f"reward {name!r} pays into stream {transform.stream!r}, but returns has {set(parts.returns)}. Add returns for it."
            )
    opened = {"", *(transform.stream for transform in parts.rewards.values())}
    for stream, returns in parts.returns.items():
        if stream not in opened:
            raise UsageError(
                f"returns names stream {stream!r}, but no reward transform pays into it (streams: {opened})."
            )
        if earning and returns.needs_value:
            head = lambda outputs, stream=stream: value_of(outputs, "student", stream)
            check.traced(f"{earning[0]} by way of returns {stream!r}", head, outputs=spec[0])


def _teacher_params(parts: Learner, inputs: tuple) -> Any:
    """The one input of `step`, checked against the teacher."""
    teacher = parts.rollout.teacher
    if len(inputs) != (teacher is not None):
        fix = (
            "pass its params: run(algorithm, key, num_updates, teacher_params)"
            if teacher
            else "it takes no further inputs"
        )
        raise UsageError(
            f"this algorithm has {'a' if teacher else 'no'} teacher and got {len(inputs)} inputs; {fix}."
        )
    if teacher is None:
        return ()
    expected = jax.eval_shape(teacher.init, jax.random.key(0))
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (expected, inputs[0])]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"the teacher's params do not fit its network: expected shapes {shapes[0]}, got {shapes[1]}."
        )
    return inputs[0]
