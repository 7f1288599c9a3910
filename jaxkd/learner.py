"""The one learner: every method of this library is `learner` with other arguments.

`step` has five stages: act (`rollout.py`), relabel (`rewards/`), evaluate (`returns.py`), learn
(`optimize.py`), report (`metrics.py`). `assembly.py` finds out what is known before it runs.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import assembly, check, metrics, optimize, rollout
from jaxkd.assembly import Parts
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
)
from jaxkd.behavior import student_acts
from jaxkd.describe import table
from jaxkd.losses import stateless
from jaxkd.memory import record, restore, this_rollout
from jaxkd.optimize import component_key, named_key
from jaxkd.returns import gae

_DEFAULT_RETURNS, _DEFAULT_OPTIMIZER = gae(0.99, 0.95), optax.adam(1e-3)


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
    """Distils a teacher into a student, or trains a student without one.

    Args:
        env: a batch of B environments, `envs.make(...)`.
        student, teacher: policies; `run(algorithm, key, num_updates, teacher_params)`.
        losses: terms by name, summed; a function `(student, batch[, context]) -> [L, N]` is one.
        rewards: transforms by name, chained in this order.
        behavior: who acts; default the student, sampled.
        returns: of the environment's reward, or a dict by stream; advantages are summed.
        memory: what is learnt from; default this rollout.
        optimizer: of the student's and the terms' parameters; one step a minibatch.
        unroll_length: T, steps of every environment an update.
        sequence_length: L, of a recurrent student's sequences; default 1, recurrent T.
        num_epochs, num_minibatches: passes over the batch, and its parts.
        shuffle: "env" keeps an environment's rows together, "full" mixes all sequences (PPO with
            an MLP takes 1.3 to 1.6 times as long, benchmarks/speed/throughput.py).

    Raises:
        UsageError: for whatever cannot work together, before anything is compiled.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> teacher, student = jaxkd.networks.mlp(env, (16,)), jaxkd.networks.mlp(env, (4,))
    >>> kd = jaxkd.distill(env, student, teacher, losses={"kl": jaxkd.losses.forward_kl()})
    """
    assembly.check_kinds(env, student, teacher, losses, rewards or {}, behavior, returns, memory)
    terms = {k: x if isinstance(x, LossTerm) else stateless(x) for k, x in losses.items()}
    recurrent = jax.tree.leaves(jax.eval_shape(lambda: student.initial_carry(1)))
    length = (unroll_length if recurrent else 1) if sequence_length is None else sequence_length
    given = Parts(
        rollout.Rollout(env, student, teacher, behavior or student_acts(), unroll_length, length),
        dict(rewards or {}),
        {"": returns} if isinstance(returns, Returns) else dict(returns),
        memory or this_rollout(),
        optimize.Optimization(
            student, terms, optimizer, length, num_epochs, num_minibatches, shuffle
        ),
    )
    parts = assembly.assemble(given)
    return Algorithm(
        lambda key: init(parts, check.key(key)),
        lambda state, *inputs: step(parts, state, assembly.check_inputs(parts, inputs)),
        table(parts),
    )


def init(parts: Parts, key: jax.Array) -> State:
    """The state before the first update."""
    o = parts.optimization
    params = o.student.init(component_key(key, "student"))
    loss_params = {k: term.init(named_key(key, k), parts.earned) for k, term in o.losses.items()}
    rewards = {k: made.init(named_key(key, k), parts.acted) for k, made in parts.rewards.items()}
    opt_state = o.optimizer.init((optimize.partition(o.student, params)[0], loss_params))
    memory = parts.memory.init(record(parts.earned[1], parts.kept))
    actors = rollout.start(parts.rollout, component_key(key, "env"))
    return State(params, loss_params, opt_state, rewards, memory, actors, jnp.int32(0), key)


def step(parts: Parts, state: State, teacher_params: Any) -> tuple[State, dict]:
    """One update."""
    key = jax.random.fold_in(state.key, state.update)
    context = Context(state.update, metrics.mean_return(state.actors), (), key)
    own = lambda stage: context._replace(key=component_key(key, stage))
    actors = state.actors
    if any(returns.fresh for returns in parts.returns.values()):
        fresh = rollout.start(parts.rollout, own("reset").key)
        actors = fresh._replace(last_return=actors.last_return)
    actors, batch, last = rollout.act(
        parts.rollout, parts.needs, state.params, teacher_params, actors, own("act")
    )
    batch = assembly.complete(parts, batch)
    batch, rewards, paid = relabel(parts, state.rewards, batch, context)
    batch = jax.lax.stop_gradient(evaluate(parts, batch, last, context))
    recorded = record(batch, parts.kept)
    memory = parts.memory.add(state.memory, recorded)
    sample = parts.memory.sample(own("memory").key, memory, recorded)
    sample = restore(sample, parts.earned[1], parts.kept)
    trained = state.params, state.loss_params, state.opt_state
    *trained, means = optimize.learn(parts.optimization, *trained, sample, own("learn"))
    params = parts.rollout.student.observe(trained[0], batch.obs)
    after = (params, trained[1], trained[2], rewards, memory, actors, state.update + 1, state.key)
    return State(*after), metrics.report(parts.rollout.env, actors, batch, means, paid)


# --- the stages that have no file of their own --------------------------------------------------


def relabel(parts: Parts, states: dict, batch: Batch, context: Context) -> tuple[Batch, dict, dict]:
    """Stage 2: each transform in order. -> batch with `streams`, new states, mean rewards."""
    streams, after, paid = {"": batch.reward}, {}, {}
    for name, transform in parts.rewards.items():
        reward = streams.get(transform.stream, jnp.zeros_like(batch.reward))
        own = context._replace(key=named_key(context.key, name))
        reward, after[name] = transform.update(reward, states[name], batch, own)
        streams[transform.stream], paid[name] = reward, metrics.mean(reward, batch.weight)
    return batch._replace(streams=streams), after, paid


def evaluate(parts: Parts, batch: Batch, last: Outputs, context: Context) -> Batch:
    """Stage 3: a `Returns` a stream; advantages are summed, weights multiplied.

    Skipped where nothing reads them. A row whose action the environment weighs 0 has none.
    """
    if not parts.earns:
        return batch
    advantage, targets, shares = jnp.zeros_like(batch.reward), {}, []
    for stream, returns in parts.returns.items():
        value, following = (), ()
        if returns.needs_value:
            outputs = batch.acting, batch.acting_next, last
            acting, following, final = (o.extra[stream] if stream else o.value for o in outputs)
            value = jnp.concatenate([acting, final[None]])
        reward = batch.streams[stream]
        gain, targets[stream], *share = returns.evaluate(reward, value, following, batch, context)
        advantage, shares = advantage + gain, shares + share
    if jax.tree.leaves(batch.weight):
        advantage = jnp.where(batch.weight > 0, advantage, 0.0)
        shares = [batch.weight, *shares]
    weight = math.prod(shares) if shares else ()
    earned = dict(targets=targets, target=targets.get("", ()), advantage=advantage, weight=weight)
    return batch._replace(**earned)
