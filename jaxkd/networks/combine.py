"""One policy made of several: a policy a task, a head a task, a policy an environment, a mixture.

Legend of shapes: `[...]` a batch, `B` environments, `O` size of the padded observation of
`envs.concat`, `A` actions of the task that has most, `K` tasks, `n` policies.
"""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check
from jaxkd.base import Discrete, Outputs, Policy, UsageError
from jaxkd.description import Spec, described
from jaxkd.distributions import MASK, Categorical, Normal, log_probs
from jaxkd.networks.mlp import mlp


@described
def concat(env: Any, policies: Sequence[Policy], singles: Sequence[Any]) -> Policy:
    """Policies of single tasks as one: each row is answered by the policy of its obs["task"].

    A teacher a task, Rusu et al. 2015. Each sees its own observation, cut out of the padded one.
    Every policy computes every row (K forward passes), and what the others said is dropped, so any
    mixture of networks fits, recurrent ones too. Statistics of `normalise` stay as they are.

    Args:
        env: the `Env` of `envs.concat`.
        policies: one a task, in its order.
        singles: the environments (or specs) they were made for.

    Returns:
        a Policy whose params are the tuple of theirs; it has no `features`, and a value where all
        have one.

    >>> import jaxkd
    >>> singles = [jaxkd.envs.make(name, num_envs=2) for name in ("CartPole-v1", "Acrobot-v1")]
    >>> env = jaxkd.envs.concat(*singles)
    >>> teachers = [jaxkd.networks.mlp(single, (64,)) for single in singles]
    >>> teacher = concat(env, teachers, singles)         # its params: the tuple of the teachers'
    """
    policies, singles = tuple(policies), tuple(singles)
    _check_spec("concat", env)
    _check_singles(env, policies, singles)

    def through(name):
        def dispatched(params, carry, obs, reset):
            carries, outputs = [], []
            for i, (policy, single) in enumerate(zip(policies, singles, strict=True)):
                own_obs = _cut(obs["obs"], single.obs_spec)
                call = getattr(policy, name)
                own_carry, answer = call(params[i], carry[i], own_obs, reset)
                carries.append(own_carry)
                outputs.append(answer)
            return tuple(carries), _chosen(outputs, obs)

        return dispatched

    return _side_by_side(policies, through("step"), through("unroll"))


def _side_by_side(policies: tuple[Policy, ...], step: Callable, unroll: Callable) -> Policy:
    """A policy whose params and carry are the tuples of theirs."""

    def init(key):
        keys = jax.random.split(key, len(policies))
        return tuple(policy.init(own) for policy, own in zip(policies, keys, strict=True))

    def initial_carry(num_envs):
        return tuple(policy.initial_carry(num_envs) for policy in policies)

    def trainable(params):
        pairs = zip(policies, params, strict=True)
        return tuple(policy.trainable(own) for policy, own in pairs)

    return Policy(init, initial_carry, step, unroll, trainable=trainable)


@described
def multihead(
    env: Any,
    hidden: Sequence[int],
    *,
    network: Callable[..., Policy] = mlp,
    num_tasks: int | None = None,
    extra: Sequence[str] = (),
    **keywords: Any,
) -> Policy:
    """One trunk for all tasks, a policy head and a value head for each, chosen by obs["task"].

    Rusu et al. 2015.

    Args:
        env: the `Env` of `envs.concat`, or anything with its `obs_spec` and `action_space`.
        hidden: widths of the trunk.
        network: `mlp`, `lstm`, `gru` or alike: called with (spec, hidden, extra=..., **keywords),
            it sees obs["obs"] alone.
        num_tasks: K; default the number of `env.tasks`.
        extra: names of further value heads, one a reward stream; each task has its own.
        keywords: of the network. `normalise=True` keeps one statistic over all tasks: what is small
            in one of them nearly vanishes (MountainCar's velocity, benchmarks/studies/multitask.py:
            PPO stays at -200 there).

    >>> import jaxkd
    >>> singles = [jaxkd.envs.make(name, num_envs=2) for name in ("CartPole-v1", "Acrobot-v1")]
    >>> env = jaxkd.envs.concat(*singles)
    >>> student = multihead(env, (64,), normalise=True)
    """
    _check_spec("multihead", env)
    number = len(getattr(env, "tasks", ())) if num_tasks is None else num_tasks
    check.count("num_tasks (default: the number of env.tasks)", number)
    # of every value head, the names of those for the tasks 1, 2, ...; task 0 has its own name
    further = {name: [f"{name or 'value'}_{i}" for i in range(1, number)] for name in ("", *extra)}
    names = (*extra, *(head for heads in further.values() for head in heads))
    inner_spec = Spec(env.obs_spec["obs"], Discrete(number * env.action_space.n))
    inner = network(inner_spec, hidden, extra=names, **keywords)

    def one_head(out, obs):
        # [..., K]; a sum over tasks, because the gradient of a gather is a slow scatter
        mine = jax.nn.one_hot(obs["task"], number, dtype=jnp.float32)

        def pick(name):
            first = out.extra[name] if name else out.value
            heads = jnp.stack([first, *(out.extra[head] for head in further[name])], axis=-1)
            return jnp.sum(mine * heads, axis=-1)

        of_all = out.policy.logits.reshape((*mine.shape, -1))  # [..., K, A]
        logits = jnp.sum(mine[..., None] * of_all, axis=-2)
        policy = Categorical(jnp.where(obs["mask"], logits, MASK))
        layers = {name: x for name, x in out.extra.items() if name not in names}
        heads = {name: pick(name) for name in extra}
        return out._replace(policy=policy, value=pick(""), extra=layers | heads)

    def through(call):
        def chosen(params, carry, obs, reset):
            carry, out = call(params, carry, obs["obs"], reset)
            return carry, one_head(out, obs)

        return chosen

    return inner._replace(
        step=through(inner.step),
        unroll=through(inner.unroll),
        observe=lambda params, obs: inner.observe(params, obs["obs"]),
    )


@described
def per_env(policy: Policy, num_envs: int) -> Policy:
    """`policy` with params of its own in every environment: a teacher each, thousands of systems.

    Its params are `policy`'s with a leading environment axis [B]. A row is answered by the params
    of the environment it comes from, in whatever order rows are stacked, flattened or shuffled on
    their way: the carry says it, see `_own`. As a teacher it costs little more than its products.
    As a student it learns in sequences like a recurrent one: T long unless `sequence_length` says
    otherwise, and each of them takes a copy of its weights.

    Args:
        policy: of one environment; recurrent ones too, and `normalise` (a statistic each).
        num_envs: B. With fewer environments (a test of the first ones) the first params answer.

    Returns:
        a Policy; `init` draws params for each environment.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=3)
    >>> inside = jaxkd.networks.mlp(env, (8,))
    >>> trained = [inside.init(key) for key in jaxkd.seeds(0, 3)]
    >>> teacher = per_env(inside, num_envs=3)
    >>> params = jax.tree.map(lambda *x: jnp.stack(x), *trained)        # [3, ...]
    """
    check.kind("policy", policy, Policy, "a Policy (jaxkd.networks.mlp and others)")
    check.count("num_envs", num_envs)

    def init(key):
        return jax.vmap(policy.init)(jax.random.split(key, num_envs))

    def initial_carry(rows):
        if rows > num_envs and rows % num_envs:
            raise UsageError(
                f"per_env has params for {num_envs} environments, which do not divide {rows}. "
                f"Make it with num_envs={rows}."
            )
        env = jnp.arange(rows, dtype=jnp.int32) % num_envs
        return {"policy": policy.initial_carry(rows), "env": env}

    def through(call, rows_axis):
        def answered(params, carry, obs, reset):
            def one(own, carry, obs, reset):
                carry = jax.tree.map(lambda x: x[None], carry)
                obs, reset = jax.tree.map(lambda x: jnp.expand_dims(x, rows_axis), (obs, reset))
                carry, out = call(own, carry, obs, reset)
                alone = jax.tree.map(lambda x: jnp.squeeze(x, rows_axis), out)
                return jax.tree.map(lambda x: x[0], carry), alone

            rows = jax.vmap(one, (0, 0, rows_axis, rows_axis), (0, rows_axis))
            inside, out = rows(_own(params, carry["env"]), carry["policy"], obs, reset)
            return {"policy": inside, "env": carry["env"]}, out

        return answered

    def observe(params, obs):
        rows = jax.tree.leaves(obs)[0].shape[1]
        if rows % num_envs:
            raise UsageError(
                f"per_env has params for {num_envs} environments, which observe {rows}. "
                f"Make it with num_envs={rows}."
            )

        def one(own, obs):  # [T, B / n, ...] of the environments with these params
            return policy.observe(own, obs)

        split = lambda x: x.reshape((x.shape[0], -1, num_envs, *x.shape[2:]))
        return jax.vmap(one, (0, 2))(params, jax.tree.map(split, obs))

    step, unroll = through(policy.step, 0), through(policy.unroll, 1)
    return Policy(init, initial_carry, step, unroll, observe, policy.trainable)


def _own(params: Any, env: jax.Array) -> Any:
    """Of params [B, ...], those of each row: [N, ...] for the environments' numbers `env` [N].

    The engine has rows in several layouts: [B] while acting, [T, B] unrolled, [(K + 1) B] at
    successors (K slots and the last observation, slot by slot), shuffled columns in a minibatch.
    None of them is spelt out here: a row's carry travels with it and names its environment. And
    because it never changes, successors are asked like a sequence, [K + 1, B]
    (`successors.remembers`).
    """
    return jax.tree.map(lambda x: jnp.take(x, env, axis=0, mode="clip"), params)


@described
def mixture(
    policies: Sequence[Policy], weights: Sequence[float] | jax.Array | Callable | str
) -> Policy:
    """Policies mixed by weights: p = sum_i w_i p_i, and the value sum_i w_i V_i.

    Of Categoricals the mixture is exact, log p = log sum_i w_i exp(log p_i). A mixture of Normals
    is no Normal: it is answered by the Normal with its mean and variance in each dimension,
    m = sum_i w_i m_i and sum_i w_i (s_i^2 + (m_i - m)^2).

    Args:
        policies: n, of the same actions; each computes every row.
        weights: [n], or a function of obs [...] that gives [..., n]: a teacher for each region of
            the state. They are divided by their sum. "confidence": exp(-entropy) of each policy in
            each row, so that who is sure counts most.

    Returns:
        a Policy whose params are the tuple of theirs; it has no `features`, and a value where all
        have one. Statistics of `normalise` stay as they are.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> teachers = [jaxkd.networks.mlp(env, (64,)), jaxkd.networks.lstm(env, (16,))]
    >>> teacher = mixture(teachers, (0.75, 0.25))
    """
    policies = tuple(policies)
    _check_mixed(policies, weights)

    def through(name):
        def mixed(params, carry, obs, reset):
            carries, outputs = [], []
            for i, policy in enumerate(policies):
                own_carry, answer = getattr(policy, name)(params[i], carry[i], obs, reset)
                carries.append(own_carry)
                outputs.append(answer)
            if isinstance(weights, str):
                sure = [-out.policy.entropy() for out in outputs]
                given = jax.nn.softmax(jnp.stack(sure, axis=-1))
            else:
                given = jnp.asarray(weights(obs) if callable(weights) else weights, jnp.float32)
            if given.shape[-1:] != (len(policies),):
                raise UsageError(
                    f"mixture of {len(policies)} policies needs weights [..., {len(policies)}], "
                    f"got {given.shape}."
                )
            return tuple(carries), _mixed(
                outputs, jnp.broadcast_to(given, (*reset.shape, *given.shape[-1:]))
            )

        return mixed

    return _side_by_side(policies, through("step"), through("unroll"))


def _mixed(outputs: Sequence[Outputs], weights: jax.Array) -> Outputs:
    """Outputs [...] of n policies as one, by weights [..., n]."""
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    records = [out.policy for out in outputs]
    policy: Any
    if all(isinstance(record, Categorical) for record in records):
        stacked = jnp.stack([log_probs(record.logits) for record in records], -1)  # [..., A, n]
        # with b= a policy of weight 0 is left out, and its gradient is not nan
        policy = Categorical(jax.nn.logsumexp(stacked, axis=-1, b=weights[..., None, :]))
    elif all(isinstance(record, Normal) for record in records):
        share = weights[..., None, :]
        means = jnp.stack([record.mean for record in records], axis=-1)  # [..., D, n]
        log_stds = jnp.stack([record.log_std for record in records], axis=-1)
        mean = jnp.sum(share * means, axis=-1)
        spread = jnp.exp(2 * log_stds) + jnp.square(means - mean[..., None])
        policy = Normal(mean, 0.5 * jnp.log(jnp.sum(share * spread, axis=-1)))
    else:
        kinds = ", ".join(sorted({type(record).__name__ for record in records}))
        raise UsageError(f"mixture mixes Categoricals, or Normals, got {kinds}.")
    if not all(hasattr(out.value, "shape") for out in outputs):
        return Outputs(policy)
    values = jnp.stack([out.value for out in outputs], axis=-1)
    return Outputs(policy, jnp.sum(weights * values, axis=-1))


def _check_mixed(policies: tuple[Policy, ...], weights: Any) -> None:
    if not policies:
        raise UsageError("mixture needs at least one policy.")
    for i, policy in enumerate(policies):
        check.kind(f"policy {i}", policy, Policy, "a Policy (jaxkd.networks.mlp and others)")
    if isinstance(weights, str) and weights != "confidence":
        raise UsageError(f"the weights of a mixture are 'confidence', or numbers, got {weights!r}.")
    if not isinstance(weights, list | tuple):
        return  # an array or a function: its length is checked when it is used
    if len(weights) != len(policies):
        raise UsageError(f"mixture has {len(policies)} policies, but {len(weights)} weights.")
    for weight in weights:
        check.number("weights", weight, low=0)
    if all(isinstance(weight, int | float) for weight in weights) and sum(weights) == 0:
        raise UsageError("the weights of a mixture are all 0.")


def _cut(flat: jax.Array, obs_spec: Any) -> Any:
    """The observation that `envs.pad` flattened: [..., O] -> leaves [..., *shape], own dtypes."""
    leaves, structure = jax.tree.flatten(obs_spec)
    cut: list[jax.Array] = []
    start = 0
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

    def fill(logits):
        missing = [(0, 0)] * (logits.ndim - 1) + [(0, width - logits.shape[-1])]
        return jnp.pad(logits, missing, constant_values=MASK)

    policy = Categorical(choose([fill(out.policy.logits) for out in outputs]))
    valued = all(hasattr(out.value, "shape") for out in outputs)
    return Outputs(policy, choose([out.value for out in outputs]) if valued else ())


def _check_spec(name: str, env: Any) -> None:
    spec = env.obs_spec
    if (
        not isinstance(spec, dict)
        or set(spec) != {"obs", "task", "mask"}
        or not isinstance(env.action_space, Discrete)
    ):
        raise UsageError(
            f"networks.{name} is for the observations of envs.concat or envs.pad, got "
            f"{jax.tree.map(lambda x: x.shape, spec)}."
        )


def _check_singles(env: Any, policies: tuple, singles: tuple) -> None:
    names = getattr(env, "tasks", ())
    if not policies or len(policies) != len(singles) or (names and len(policies) != len(names)):
        raise UsageError(
            f"concat needs a policy and an environment a task ({len(names)}), got {len(policies)} "
            f"and {len(singles)}."
        )
    for i, (policy, single) in enumerate(zip(policies, singles, strict=True)):
        check.kind(f"policy {i}", policy, Policy, "a Policy (jaxkd.networks.mlp and others)")
        size = sum(math.prod(x.shape) for x in jax.tree.leaves(single.obs_spec))
        most = env.obs_spec["obs"].shape[0]
        discrete = isinstance(single.action_space, Discrete)
        if not discrete or size > most or single.action_space.n > env.action_space.n:
            raise UsageError(
                f"task {i} has {size} numbers and {single.action_space}, more than the {most} and "
                f"{env.action_space} of env: give the environments of envs.concat, in its order."
            )
        name = getattr(single, "name", f"task {i}")
        check.fits(
            f"policy {i}",
            policy,
            SimpleNamespace(obs_spec=single.obs_spec, action_space=single.action_space, name=name),
        )
