"""What is measured on trained policies: returns acting alone, cost of one action, likeness.

Legend of shapes: `n` seeds, `E` episodes.
"""

import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import losses
from jaxkd.base import Discrete, Env, Evaluation, Policy, State
from jaxkd.cli.training import phase_keys
from jaxkd.evaluate import actor_size, evaluate
from jaxkd.recipes import distill
from jaxkd.run import lanes

_WARM_CALLS, _TIMED_CALLS = 20, 300


def returns(
    env: Env,
    policy: Policy,
    params: Any,
    keys: jax.Array,
    *,
    episodes: int,
    shared: bool,
    greedy: tuple[bool, ...] = (True, False),
) -> list[Evaluation]:
    """Episodes [n, E] of a policy acting alone, for each of `greedy`: its mode, or sampled.

    The seed's key is folded with "evaluation", so that all policies meet equal starts.
    """
    keys = phase_keys(keys, "evaluation")
    played = jax.device_get(_returns(env, policy, params, keys, episodes, shared, greedy))
    return [jax.tree.map(lambda x, i=i: x[i], played) for i in range(len(greedy))]


@partial(jax.jit, static_argnums=(0, 1, 4, 5, 6))
def _returns(env, policy, params, keys, episodes, shared, greedy):
    def one(params, key, greedy):
        return evaluate(env, policy, params, key, num_episodes=episodes, greedy=greedy)

    seeds = jax.vmap(one, (None if shared else 0, 0, None))
    return jax.vmap(seeds, (None, None, 0))(params, keys, jnp.array(greedy))


def different_starts(env: Env, key: jax.Array) -> int:
    """How many first observations of a batch of environments differ."""
    obs = jax.device_get(jax.jit(env.reset)(key)[1])
    rows = [np.reshape(leaf, (env.num_envs, -1)) for leaf in jax.tree.leaves(obs)]
    return len(np.unique(np.concatenate(rows, axis=1), axis=0))


def cost(env: Env, policy: Policy, params: Any) -> dict[str, Any]:
    """Of the actor of ONE seed: parameters, bytes, FLOPs of a greedy action, latency.

    FLOPs are XLA's count before optimisation. The latency is the median of one call from Python
    for a batch of one, dispatch included.
    """

    @jax.jit
    def act(params, obs):
        return policy.step(params, policy.initial_carry(1), obs, jnp.ones(1, jnp.float32))[
            1
        ].policy.mode()

    obs = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), env.obs_spec)
    size = actor_size(policy, params, env.obs_spec, num_envs=env.num_envs)
    flops = (act.lower(params, obs).cost_analysis() or {}).get("flops")
    seconds = []
    for _ in range(_WARM_CALLS + _TIMED_CALLS):
        started = time.perf_counter()
        jax.block_until_ready(act(params, obs))
        seconds.append(time.perf_counter() - started)
    latency = statistics.median(seconds[_WARM_CALLS:])
    weight = max((leaf.dtype.itemsize for leaf in jax.tree.leaves(params)), default=0)
    return dict(
        actor_parameters=size,
        actor_bytes=size * weight,
        flops_per_action=flops,
        latency_us=round(1e6 * latency, 2),
    )


def likeness(
    env: Env,
    student: Policy,
    teacher: Policy,
    keys: jax.Array,
    trained: State,
    teacher_params: Any,
    *,
    shared: bool,
    length: int,
) -> dict[str, jax.Array]:
    """Student against teacher on one more rollout of the student, from where its training ended.

    Returns:
        means [n]: "kl", KL(teacher || student) in nats, and "agreement", the share of equal greedy
        actions; for continuous actions "action_distance" instead, the mean absolute difference of
        the greedy actions in [-1, 1].
    """

    def agreement(student, batch):
        return student.policy.mode() == batch.teacher.policy.mode()

    def action_distance(student, batch):
        ours, theirs = (jnp.clip(out.policy.mode(), -1.0, 1.0) for out in (student, batch.teacher))
        return jnp.mean(jnp.abs(ours - theirs), axis=-1)

    compared = agreement if isinstance(env.action_space, Discrete) else action_distance
    terms = {"kl": losses.watch(losses.forward_kl()), compared.__name__: losses.watch(compared)}
    still = optax.set_to_zero()
    probe = lanes(
        distill(
            env,
            student,
            teacher,
            losses=terms,
            optimizer=still,
            unroll_length=length,
            num_minibatches=1,
        ),
        shared=shared,
    )

    @jax.jit
    def measured(keys, trained, teacher_params):
        fresh = probe.init(keys)
        # A recurrent teacher that was not there has not seen these episodes: new ones begin.
        watched = jax.tree.structure(trained.actors) == jax.tree.structure(fresh.actors)
        actors = trained.actors if watched else fresh.actors
        return probe.step(fresh._replace(params=trained.params, actors=actors), teacher_params)[1]

    metrics = jax.device_get(measured(phase_keys(keys, "likeness"), trained, teacher_params))
    return {name: metrics[f"loss/{name}"] for name in terms}
