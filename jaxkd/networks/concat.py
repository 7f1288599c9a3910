"""Policies of several tasks, on the observations of `envs.concat`: single ones side by side, and one with a head a task.

Legend of shapes: `[...]` a batch, `O` size of the padded observation, `A` actions of the task that has most, `K` tasks.
"""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Discrete, Outputs, Policy, UsageError
from jaxkd.distributions import Categorical
from jaxkd.networks.mlp import mlp
from jaxkd.networks.module import Spec

_ILLEGAL = -1e9  # logit of an action that the task does not have: its probability is 0, its log-probability finite


def concat(env: Any, policies: Sequence[Policy], singles: Sequence[Any]) -> Policy:
    """Policies of single tasks as one: each row is answered by the policy of its obs["task"] (Rusu et al. 2015: a teacher a task).

    Each sees its own observation, cut out of the padded one. Every policy computes every row (K forward passes), and what the
    others said is dropped, so any mixture of networks fits, recurrent ones too. Statistics of `normalise` stay as they are.

    Args:
        env: the `Env` of `envs.concat`.
        policies: one a task, in its order.
        singles: the environments (or specs) they were made for.

    Returns:
        a Policy whose params are the tuple of theirs; it has no `features`, and a value where all have one.

    >>> import jaxkd
    >>> singles = [jaxkd.envs.make("CartPole-v1", num_envs=2), jaxkd.envs.make("Acrobot-v1", num_envs=2)]
    >>> env = jaxkd.envs.concat(*singles)
    >>> teachers = [jaxkd.networks.mlp(single, (64,)) for single in singles]
    >>> teacher = concat(env, teachers, singles)             # its params: the tuple of the teachers' params
    """
    policies, singles = tuple(policies), tuple(singles)
    _check_spec("concat", env)
    _check_singles(env, policies, singles)

    def init(key):
        return tuple(
            policy.init(own)
            for policy, own in zip(policies, jax.random.split(key, len(policies)), strict=True)
        )

    def initial_carry(num_envs):
        return tuple(policy.initial_carry(num_envs) for policy in policies)

    def through(name):
        def dispatched(params, carry, obs, reset):
            calls = zip(policies, singles, params, carry, strict=True)
            said = [
                getattr(policy, name)(own, memory, _cut(obs["obs"], single.obs_spec), reset)
                for policy, single, own, memory in calls
            ]
            carries, outputs = zip(*said, strict=True)
            return carries, _chosen(outputs, obs)

        return dispatched

    return Policy(init, initial_carry, through("step"), through("unroll"))


def multihead(
    env: Any,
    hidden: Sequence[int],
    *,
    network: Callable[..., Policy] = mlp,
    num_tasks: int | None = None,
    extra: Sequence[str] = (),
    **keywords: Any,
) -> Policy:
    """One trunk for all tasks, a policy head and a value head for each, chosen by obs["task"] (Rusu et al. 2015).

    Args:
        env: the `Env` of `envs.concat`, or anything with its `obs_spec` and `action_space`.
        hidden: widths of the trunk.
        network: `mlp`, `lstm`, `gru` or alike: called with (spec, hidden, extra=..., **keywords), it sees obs["obs"] alone.
        num_tasks: K; default the number of `env.tasks`.
        extra: names of further value heads, one a reward stream; each task has its own.
        keywords: of the network. `normalise=True` keeps one statistic over all tasks: what is small in one of them nearly vanishes
            (MountainCar's velocity, benchmarks/studies/multitask.py: PPO stays at -200 there).

    >>> import jaxkd
    >>> env = jaxkd.envs.concat(jaxkd.envs.make("CartPole-v1", num_envs=2), jaxkd.envs.make("Acrobot-v1", num_envs=2))
    >>> student = multihead(env, (64,), normalise=True)
    """
    _check_spec("multihead", env)
    number = len(getattr(env, "tasks", ())) if num_tasks is None else num_tasks
    check.count("num_tasks (default: the number of env.tasks)", number)
    further = {name: [f"{name or 'value'}_{i}" for i in range(1, number)] for name in ("", *extra)}
    names = (*extra, *(head for heads in further.values() for head in heads))
    inner = network(
        Spec(env.obs_spec["obs"], Discrete(number * env.action_space.n)),
        hidden,
        extra=names,
        **keywords,
    )

    def one_head(out, obs):
        mine = jax.nn.one_hot(
            obs["task"], number
        )  # [..., K]; a sum, because the gradient of a gather is a slow scatter

        def pick(name):
            first = out.extra[name] if name else out.value
            return jnp.sum(
                mine * jnp.stack([first, *(out.extra[head] for head in further[name])], axis=-1),
                axis=-1,
            )

        logits = out.policy.logits.reshape((*mine.shape, -1))
        logits = jnp.sum(mine[..., None] * logits, axis=-2)
        kept = {name: x for name, x in out.extra.items() if name not in names}
        policy = Categorical(jnp.where(obs["mask"], logits, _ILLEGAL))
        return out._replace(
            policy=policy, value=pick(""), extra=kept | {name: pick(name) for name in extra}
        )

    def through(call):
        def chosen(params, carry, obs, reset):
            carry, out = call(params, carry, obs["obs"], reset)
            return carry, one_head(out, obs)

        return chosen

    return inner._replace(
        step=through(inner.step),
        unroll=through(inner.unroll),
        observe=lambda params, obs: inner.observe(params, obs["obs"]),
        description=_description(env, inner, network, number, tuple(extra)),
    )


def _description(env: Any, inner: Policy, network: Callable, number: int, extra: tuple) -> tuple:
    """Of the inner network, with the specification of all tasks."""
    if not inner.description:
        return ()
    obs, action = check.spaces(env.obs_spec, env.action_space)
    kept = dict(inner.description[1]) | dict(obs=obs, action=action, extra=extra)
    return "multihead", (*kept.items(), ("network", network.__name__), ("num_tasks", number))


def _cut(flat: jax.Array, obs_spec: Any) -> Any:
    """The observation that `envs.pad` flattened, [..., O] -> leaves [..., *shape] in their dtypes."""
    leaves, structure = jax.tree.flatten(obs_spec)
    cut, start = [], 0
    for leaf in leaves:
        end = start + math.prod(leaf.shape)
        cut.append(flat[..., start:end].reshape((*flat.shape[:-1], *leaf.shape)).astype(leaf.dtype))
        start = end
    return jax.tree.unflatten(structure, cut)


def _chosen(outputs: Sequence[Outputs], obs: Any) -> Outputs:
    """Of each row, what the policy of its task said."""

    def choose(answers):
        chosen = answers[0]
        for i, answer in enumerate(answers[1:], 1):
            here = (obs["task"] == i).reshape(
                obs["task"].shape + (1,) * (answer.ndim - obs["task"].ndim)
            )
            chosen = jnp.where(here, answer, chosen)
        return chosen

    width = obs["mask"].shape[-1]
    logits = [out.policy.logits for out in outputs]
    fill = [
        jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])], constant_values=_ILLEGAL)
        for x in logits
    ]
    valued = all(hasattr(out.value, "shape") for out in outputs)
    return Outputs(
        Categorical(choose(fill)), choose([out.value for out in outputs]) if valued else ()
    )


def _check_spec(name: str, env: Any) -> None:
    spec = env.obs_spec
    if (
        not isinstance(spec, dict)
        or set(spec) != {"obs", "task", "mask"}
        or not isinstance(env.action_space, Discrete)
    ):
        raise UsageError(
            f"networks.{name} is for the observations of envs.concat or envs.pad, got {jax.tree.map(lambda x: x.shape, spec)}."
        )


def _check_singles(env: Any, policies: tuple, singles: tuple) -> None:
    names = getattr(env, "tasks", ())
    if not policies or len(policies) != len(singles) or (names and len(policies) != len(names)):
        raise UsageError(
            f"concat needs a policy and an environment a task ({len(names)}), got {len(policies)} and {len(singles)}."
        )
    for i, (policy, single) in enumerate(zip(policies, singles, strict=True)):
        check.kind(f"policy {i}", policy, Policy, "a Policy (jaxkd.networks.mlp and others)")
        size, most = (
            sum(math.prod(x.shape) for x in jax.tree.leaves(single.obs_spec)),
            env.obs_spec["obs"].shape[0],
        )
        if (
            not isinstance(single.action_space, Discrete)
            or size > most
            or single.action_space.n > env.action_space.n
        ):
            raise UsageError(
                f"task {i} has {size} numbers and {single.action_space}, more than the {most} and {env.action_space} of env: "
                f"give the environments of envs.concat, in its order."
            )
        name = getattr(single, "name", f"task {i}")
        check.fits(
            f"policy {i}",
            policy,
            SimpleNamespace(obs_spec=single.obs_spec, action_space=single.action_space, name=name),
        )
