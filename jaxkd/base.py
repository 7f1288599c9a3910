"""The records everything is made of, and nothing else.

Legend of shapes: `T` time, `B` environments, `L` sequence length, `N` sequences in a minibatch,
`A` actions, `D` action dimensions, `F` features, `E` episodes. `[...]` is any batch shape.

Losses add, rewards chain, advantages add, and what runs is a pair `(init, step)`.
"""

import linecache
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class UsageError(ValueError):
    """What the user wrote cannot work; the message says what is wrong, both values, what to do."""


class ArtifactError(ValueError):
    """A file that was to be loaded is missing, damaged or of another kind."""


class DeviceError(RuntimeError):
    """The device asked for is not there."""


def _all_trained(params):
    return jax.tree.map(lambda x: True, params)


def _functions(cls):
    """Makes a record hashable by identity, and no argument of a function under jit, vmap, grad."""

    def refuse(*record: Any) -> Any:
        raise UsageError(
            f"{cls.__name__} holds functions, so it cannot be an argument of a function under jit, "
            f"vmap or grad. Close over it, or mark it static (jax.jit(f, static_argnums=...))."
        )

    cls.__hash__ = object.__hash__
    cls.__eq__ = lambda self, other: self is other
    cls.__ne__ = lambda self, other: self is not other
    jax.tree_util.register_pytree_node(cls, refuse, refuse)
    return cls


# --- data ----------------------------------------------------------------------------------------


class Discrete(NamedTuple):
    """An action space of `n` actions; an action is int32 []."""

    n: int  # actions


class Box(NamedTuple):
    """Continuous actions, float32 `shape` = (D,) in [-1, 1]^D; the adapter scales and clips."""

    shape: tuple[int, ...]  # (D,)


class Outputs(NamedTuple):
    """What a policy says about a batch of observations."""

    policy: Any  # a distribution record of `distributions.py`, batch shape [...]
    value: Any = ()  # [...]; () where the network has no value head
    features: Any = ()  # [..., F], the last hidden layer; () where the network does not say
    extra: Any = ()  # dict by name: further heads [...], such as a stream's value, layers [..., F]


class TimeStep(NamedTuple):
    """What a batch of environments answers to a batch of actions."""

    obs: Any  # [B, ...] to act on next (after a reset: the first of the new episode)
    next_obs: Any  # [B, ...] the true successor, before any reset
    reward: jax.Array  # float32 [B]
    terminated: jax.Array  # float32 [B], 1 at a natural end
    truncated: jax.Array  # float32 [B], 1 where the time limit cut; never where terminated is 1
    weight: Any = ()  # float32 [B], 0 where there is nothing to learn from the action; () is 1


class Context(NamedTuple):
    """What every component may know beyond its batch."""

    update: jax.Array  # int32 [], updates completed: what schedules are called with
    episode_return: jax.Array  # float32 [], metric "return" of the update before; -inf: none yet
    episode_step: Any  # int32 [B], steps since the reset; only while acting, otherwise ()
    key: jax.Array  # [], differs for every update, minibatch and component


class Batch(NamedTuple):
    """One rollout: [T, B, ...] in stages 1 to 3, [L, N, ...] inside a loss.

    Fields that nothing reads are never computed.
    """

    obs: Any  # [T, B, ...] acted on
    next_obs: Any  # [T, B, ...] true successor
    action: jax.Array  # [T, B] int32 or [T, B, D] float32
    reward: jax.Array  # [T, B] of the environment
    terminated: jax.Array  # [T, B]
    truncated: jax.Array  # [T, B]
    reset: jax.Array  # [T, B] 1 where obs begins an episode
    carry: Any  # [B, ...] the student's before the first row of a sequence; [T / L, B, ...] before
    acting: Any  # Outputs [T, B] of the student that acted; () in a replayed batch
    teacher: Any  # Outputs [T, B]; nobody may read it without a teacher
    acting_next: Any = ()  # Outputs [T, B] at the true successor
    teacher_next: Any = ()  # Outputs [T, B] at the true successor
    streams: Any = ()  # dict: reward [T, B] by stream, "" the environment's
    targets: Any = ()  # dict: value target [T, B] by stream
    advantage: Any = ()  # [T, B], summed over the streams
    target: Any = ()  # [T, B], the target of stream ""
    weight: Any = ()  # [T, B] what a row counts: the environment's times the returns'; () is 1


class Actors(NamedTuple):
    """What the acting side carries from rollout to rollout; every leaf leads with [B]."""

    env_state: Any  # of `Env`
    obs: Any  # [B, ...] to act on next
    reset: jax.Array  # float32 [B]
    carry: Any  # the student's
    teacher_carry: Any  # () without a teacher
    episode_return: jax.Array  # float32 [B], of the episode under way
    episode_step: jax.Array  # int32 [B]
    last_return: jax.Array  # float32 [B], of the last finished episode; -inf before the first


class State(NamedTuple):
    """All that a training step needs and changes."""

    params: Any  # the student's own
    loss_params: Any  # dict by loss name
    opt_state: Any  # of the optimizer
    rewards: Any  # dict by transform name
    memory: Any  # the buffer
    actors: Actors  # every leaf leads with [B]
    update: jax.Array  # int32 [], updates completed
    key: jax.Array  # [], never changes


class Evaluation(NamedTuple):
    """Whole episodes of one policy acting alone."""

    returns: jax.Array  # float32 [E], undiscounted
    lengths: jax.Array  # int32 [E], steps
    discounted_returns: jax.Array  # float32 [E]


# --- records of functions ---------------------------------------------------------------------
# Functions are called by position. `description` says how a record was made (`description.py`).


@_functions
class Algorithm(NamedTuple):
    """What runs: PPO, PQN and every distillation. `step` never jits or donates, so Algorithms nest.

    >>> import jax.numpy as jnp
    >>> counting = Algorithm(lambda key: jnp.int32(0), lambda state: (state + 1, {"count": state}))
    >>> counting.step(counting.init(None))[0].item()
    1
    """

    init: Callable  # (key) -> state
    step: Callable  # (state, *inputs) -> (state, metrics); inputs: the teacher's params, if any
    description: Any = ()


@_functions
class LossTerm(NamedTuple):
    """What the student minimises; a dict of terms is summed, each by its weighted mean.

    >>> import jax.numpy as jnp
    >>> def small_values(params, student, batch, context):   # student: Outputs [L, N]
    ...     return jnp.square(student.value)                 # [L, N]: the engine averages
    >>> term = LossTerm(lambda key, spec: (), small_values)
    """

    init: Callable  # (key, spec) -> params of its own, () for almost all; spec = (Outputs, Batch)
    loss: Callable  # (params, student: Outputs [L, N], batch [L, N], context) -> [L, N]
    description: Any = ()


@_functions
class RewardTransform(NamedTuple):
    """What the student is paid; a dict of transforms is chained in the order given.

    >>> def halve(reward, state, batch, context):            # reward [T, B], batch [T, B]
    ...     return 0.5 * reward, state                       # [T, B], state for the next update
    >>> transform = RewardTransform(lambda key, spec: (), halve)
    """

    init: Callable  # (key, spec) -> state; one that learns keeps params and optimizer state here
    update: Callable  # (reward [T, B], state, batch, context) -> (reward [T, B], state)
    stream: str = ""  # of rewards: "" the environment's; a new name starts one of its own at 0
    description: Any = ()


@_functions
class Returns(NamedTuple):
    """How one stream of rewards becomes advantage and value target; a dict of them is summed.

    >>> def one_step(reward, value, next_value, batch, context):    # [T, B], [T+1, B], [T, B]
    ...     target = reward + 0.99 * (1 - batch.terminated) * next_value
    ...     return target - value[:-1], target                      # advantage, target[, weight]
    >>> returns = Returns(one_step)
    """

    evaluate: Callable  # (reward, value, next_value, batch, context) -> advantage, target[, weight]
    fresh: bool = False  # True: every update begins with a reset
    needs_value: bool = True  # False: both values are (), the student needs no value head for it
    group_size: int = 0  # above 0: whole episodes are compared within groups of this size
    description: Any = ()


@_functions
class Behavior(NamedTuple):
    """Who acts.

    >>> import jax.numpy as jnp
    >>> always_first = Behavior(lambda key, student, teacher, context: jnp.zeros(4, jnp.int32))
    """

    act: Callable  # (key, student: Outputs [B], teacher: Outputs [B] | (), context) -> action [B]
    needs_teacher: bool = False  # True: the teacher walks along, step by step
    description: Any = ()


@_functions
class Memory(NamedTuple):
    """What the learner learns from; a sample has the shapes and structure of the recorded batch.

    >>> this = Memory(lambda spec: (), lambda buffer, batch: (), lambda key, buffer, batch: batch)
    """

    init: Callable  # (spec of the recorded batch) -> buffer
    add: Callable  # (buffer, batch [T, B]) -> buffer
    sample: Callable  # (key, buffer, batch) -> batch [T, B]
    replays: bool = False  # True: of older policies, so no loss reads acting, advantage, target(s)
    description: Any = ()


@_functions
class Policy(NamedTuple):
    """A network behind a few functions; any module system fits.

    `step` answers one row for each of B environments, `unroll` a sequence; both agree, resets in
    the middle included. The carry of a recurrent network is its state, of a transformer its cache.

    >>> import jax.numpy as jnp
    >>> from jaxkd.distributions import Categorical
    >>> def step(params, carry, obs, reset):                 # obs [B, 4], reset [B]
    ...     return carry, Outputs(Categorical(obs @ params))
    >>> linear = Policy(lambda key: jnp.zeros((4, 2)), lambda num_envs: (), step, step)
    """

    init: Callable  # (key) -> params
    initial_carry: Callable  # (B) -> carry [B, ...]; no leaves: feed-forward
    step: Callable  # (params, carry, obs [B], reset [B]) -> (carry, Outputs [B])
    unroll: Callable  # (params, carry, obs [L, N], reset [L, N]) -> (last carry, Outputs [L, N])
    observe: Callable = lambda params, obs: params  # (params, obs [T, B]) -> params: statistics
    trainable: Callable = _all_trained  # (params) -> the same tree of bools: what the optimizer has
    description: Any = ()


@_functions
class Env(NamedTuple):
    """A batch of environments with automatic reset; `envs.make` makes them.

    >>> import jaxkd
    >>> env, key = jaxkd.envs.make("CartPole-v1", num_envs=3), jax.random.key(0)
    >>> env_state, obs = env.reset(key)                                      # obs [3, 4]
    >>> env_state, time_step = env.step(key, env_state, jax.numpy.ones(3, int))
    """

    reset: Callable  # (key) -> (env_state, obs [B, ...])
    step: Callable  # (key, env_state, action [B, ...]) -> (env_state, TimeStep)
    num_envs: int  # B
    obs_spec: Any  # ShapeDtypeStruct of ONE observation (a pytree)
    action_space: Any  # Discrete | Box
    max_steps: int | None = None  # time limit; None: nothing is known about truncations
    truncates: bool = True  # False: no episode is ever cut off
    group_size: int = 1  # environment i is in group i // group_size; n-th episodes start alike
    name: str = ""  # for messages
    cut_steps: int | None = None  # cuts of one environment are at least so many steps apart
    tasks: tuple[str, ...] = ()  # names of the tasks of `envs.concat`; obs["task"] counts them
    sticky: Any = 0.0  # probability that an action is repeated; of `envs.concat` a tuple of them


def _explain_fields(record: Any = None) -> None:
    """`help` of a record shows the comments beside its fields in this file."""
    for line in linecache.getlines(__file__, globals()):
        code, _, comment = line.partition("  # ")
        name = code.split(":")[0].strip()
        if code.startswith("class "):
            record = globals()[code[6:].split("(")[0]]
        elif comment and name in getattr(record, "_fields", ()):
            getattr(record, name).__doc__ = comment.strip()


_explain_fields()
