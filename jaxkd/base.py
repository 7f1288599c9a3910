"""The records everything is made of, and nothing else.

Legend of shapes: `T` time, `B` environments, `L` sequence length, `N` sequences in a minibatch, `A` actions,
`D` action dimensions, `F` features, `E` episodes, `K` slots an environment (see `rollout.py`). `[...]` is any batch shape.

Losses add, rewards chain, advantages add, and what runs is a pair `(init, step)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class UsageError(ValueError):
    """Something the user wrote cannot work; the message says what is wrong, both values, and what to do."""


class ArtifactError(ValueError):
    """A file that was to be loaded is missing, damaged or of another kind."""


class DeviceError(RuntimeError):
    """The device asked for is not there."""


def _functions(cls):
    """Makes a record of functions hashable by identity, and refuses it as an argument of a transformed function."""

    def refuse(*record: Any) -> Any:
        raise UsageError(
            f"{cls.__name__} holds functions, so it cannot be an argument of a function under jit, vmap or grad. "
            f"Close over it, or mark the argument static (jax.jit(f, static_argnums=...))."
        )

    cls.__hash__ = object.__hash__
    cls.__eq__ = lambda self, other: self is other
    cls.__ne__ = lambda self, other: self is not other
    jax.tree_util.register_pytree_node(cls, refuse, refuse)
    return cls


# --- data -----------------------------------------------------------------------------------------------------------


class Discrete(NamedTuple):
    """An action space of `n` actions; an action is int32 []."""

    n: int


class Box(NamedTuple):
    """A continuous action space; an action is float32 `shape` = (D,), acting in [-1, 1]^D (the adapter scales and clips)."""

    shape: tuple[int, ...]


class Outputs(NamedTuple):
    """What a policy says about a batch of observations."""

    policy: Any  # a distribution record of `distributions.py`, batch shape [...]
    value: Any = ()  # [...]; () where the network has no value head
    features: Any = ()  # [..., F], the last hidden layer; () where the network does not say
    extra: Any = ()  # dict by name: further heads [...] (the value of a second stream), hidden layers [..., F]


class TimeStep(NamedTuple):
    """What a batch of environments answers to a batch of actions."""

    obs: (
        Any  # [B, ...] the observation to act on next (after a reset: the first of the new episode)
    )
    next_obs: Any  # [B, ...] the true successor, before any reset
    reward: jax.Array  # float32 [B]
    terminated: jax.Array  # float32 [B], 1 at a natural end
    truncated: jax.Array  # float32 [B], 1 where the time limit cut; never where terminated is 1


class Context(NamedTuple):
    """What every component may know beyond its batch."""

    update: jax.Array  # int32 [], updates completed: what schedules are called with
    episode_return: (
        jax.Array
    )  # float32 [], the "return" metric of the update before; nan before the first episode ends
    episode_step: Any  # int32 [B], steps since the reset; only while acting, otherwise ()
    key: jax.Array  # [], differs for every update, minibatch and component


class Batch(NamedTuple):
    """One rollout: [T, B, ...] in stages 1 to 3, [L, N, ...] inside a loss. Fields that nothing reads are never computed."""

    obs: Any  # [T, B, ...] acted on
    next_obs: Any  # [T, B, ...] true successor
    action: jax.Array  # [T, B] int32 or [T, B, D] float32
    reward: jax.Array  # [T, B] of the environment
    terminated: jax.Array  # [T, B]
    truncated: jax.Array  # [T, B]
    reset: jax.Array  # [T, B] 1 where obs begins an episode
    carry: Any  # [B, ...] the student's recurrent state before the first row of each sequence; no leaves: feed-forward
    acting: Any  # Outputs [T, B] of the student that acted; () in a replayed batch
    teacher: Any  # Outputs [T, B]; () without a teacher
    acting_next: Any = ()  # Outputs [T, B] at the true successor
    teacher_next: Any = ()  # Outputs [T, B] at the true successor
    streams: Any = ()  # dict: reward [T, B] by stream, "" the environment's
    targets: Any = ()  # dict: value target [T, B] by stream
    advantage: Any = ()  # [T, B], summed over the streams
    target: Any = ()  # [T, B], the target of stream ""
    weight: Any = ()  # [T, B] 1; 0 for burn-in, padding, unfinished groups


class Actors(NamedTuple):
    """What the acting side carries from rollout to rollout; every leaf has a leading environment axis [B]."""

    env_state: Any
    obs: Any  # [B, ...]
    reset: jax.Array  # float32 [B]
    carry: Any  # the student's
    teacher_carry: Any
    episode_return: jax.Array  # float32 [B], of the episode under way
    episode_step: jax.Array  # int32 [B]
    last_return: jax.Array  # float32 [B], of the last finished episode; nan before the first


class State(NamedTuple):
    """All that a training step needs and changes."""

    params: Any  # the student's own
    loss_params: Any  # dict by loss name
    opt_state: Any
    rewards: Any  # dict by transform name
    memory: Any
    actors: Actors
    update: jax.Array  # int32 []
    key: jax.Array  # [], never changes


class Evaluation(NamedTuple):
    """Whole episodes of one policy acting alone."""

    returns: jax.Array  # float32 [E], undiscounted
    lengths: jax.Array  # int32 [E], steps
    discounted_returns: jax.Array  # float32 [E]


# --- records of functions -------------------------------------------------------------------------------------------


@_functions
class Algorithm(NamedTuple):
    """What runs. PPO, PQN and every distillation are one of these; `step` never jits or donates, so Algorithms nest."""

    init: Callable  # (key) -> State
    step: Callable  # (state, *inputs) -> (State, metrics); inputs = (teacher params,) where there is a teacher
    description: tuple = ()  # hashable (factory, keywords): what `describe` and `run.json` read


@_functions
class LossTerm(NamedTuple):
    """What the student minimises; a dict of terms is summed."""

    init: Callable  # (key, spec) -> params of its own, () for almost all; spec = (Outputs, Batch) of ShapeDtypeStructs
    loss: Callable  # (params, student: Outputs [L, N], batch [L, N], context) -> [L, N]; the engine takes the weighted mean


@_functions
class RewardTransform(NamedTuple):
    """What the student is paid; a dict of transforms is chained in the order given."""

    init: (
        Callable  # (key, spec) -> state; one that learns keeps parameters and optimizer state here
    )
    update: Callable  # (reward [T, B], state, batch, context) -> (reward [T, B], state)
    stream: str = ""  # the reward it is chained on: "" the environment's; a new name starts a stream of its own at 0


@_functions
class Returns(NamedTuple):
    """How one stream of rewards becomes advantage and value target; a dict of them is summed."""

    evaluate: Callable  # (reward [T, B], value [T+1, B], next_value [T, B], batch, context) -> (advantage, target[, weight])
    fresh: bool = False  # True: every update begins with a reset
    needs_value: bool = (
        True  # False: both values are (), and the student needs no value head for the stream
    )
    group_size: int = 0  # above 0: whole episodes are compared within the environment's groups, which must be of this size


@_functions
class Behavior(NamedTuple):
    """Who acts."""

    act: Callable  # (key, student: Outputs [B], teacher: Outputs [B] | (), context) -> action [B, ...]
    needs_teacher: bool = False


@_functions
class Memory(NamedTuple):
    """What the learner learns from; a sample has the shapes and the structure of the recorded batch."""

    init: Callable  # (spec of the recorded batch) -> buffer
    add: Callable  # (buffer, batch [T, B]) -> buffer
    sample: Callable  # (key, buffer, batch) -> batch [T, B]
    replays: bool = False  # True: from older policies; recorded is what a loss reads, without acting, advantage, target, targets


def _no_statistics(params, obs):
    return params


@_functions
class Policy(NamedTuple):
    """A network behind four functions; any module system fits."""

    init: Callable  # (key) -> params
    initial_carry: Callable  # (B) -> carry [B, ...]; no leaves: feed-forward
    step: Callable  # (params, carry, obs [B], reset [B]) -> (carry, Outputs [B])
    unroll: Callable  # (params, carry, obs [L, N], reset [L, N]) -> (last carry, Outputs [L, N])
    observe: Callable = _no_statistics  # (params, obs [T, B]) -> params: running statistics, once an update, student only
    description: tuple = ()  # hashable (factory, keywords): what `save_policy` writes


@_functions
class Env(NamedTuple):
    """A batch of environments with automatic reset."""

    reset: Callable  # (key) -> (env_state, obs [B, ...])
    step: Callable  # (key, env_state, action [B, ...]) -> (env_state, TimeStep)
    num_envs: int
    obs_spec: Any  # ShapeDtypeStruct of ONE observation (a pytree)
    action_space: Any  # Discrete | Box
    max_steps: int | None = None  # time limit; None: nothing is known about truncations
    truncates: bool = True  # False: no episode is ever cut off
    group_size: int = (
        1  # environment i belongs to group i // group_size; a group's n-th episodes start alike
    )
    name: str = ""
    cut_steps: int | None = (
        None  # the time limits of an environment are at least so many steps apart; None: max_steps
    )
    tasks: tuple[str, ...] = ()  # names of the tasks of `envs.concat`; obs["task"] counts them
