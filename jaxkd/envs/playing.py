"""Random play in an environment, and what `check_env` reads off it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.envs import protocol


class Fault(NamedTuple):
    """One thing that is wrong with an environment, or that may be meant and should be known."""

    name: str  # what kind it is, such as "bounds"
    cause: str  # one line, with both values
    fix: str  # one line
    grave: bool = True  # False: it may be meant


class Subject(NamedTuple):
    """An environment with all that the checks need of it."""

    environment: Any
    params: Any
    name: str
    begin: Callable  # key -> (obs, state)
    advance: Callable  # (key, state, action) -> (obs, state, reward, done)
    truncated: Callable  # state -> bool []
    act: Callable  # key -> action, random in its space
    limit: int | None  # steps of an episode
    size: tuple[int, int]  # steps, environments


class Steps(NamedTuple):
    """Random play without resets before an end, [T, B] each."""

    obs: Any  # [T, B, ...] after the step
    reward: jax.Array
    done: jax.Array  # as the environment says it
    truncated: jax.Array
    moved: jax.Array  # whether another action would have led elsewhere


def played(subject: Subject, key: jax.Array) -> Steps:
    """Random play; an episode begins again behind its end."""
    length, number = subject.size

    def step(state, key):
        k_act, k_other, k_step, k_begin = jax.random.split(key, 4)
        ended = subject.advance(k_step, state, subject.act(k_act))
        other = subject.advance(k_step, state, subject.act(k_other))
        differ = [
            jnp.any(a != b) for a, b in zip(*map(jax.tree.leaves, (ended, other)), strict=True)
        ]
        obs, state, reward, done = ended
        cut = subject.truncated(state)
        over = (jnp.asarray(done) != 0) | cut
        fresh = subject.begin(k_begin)[1]
        choose = lambda new, old: jnp.where(over, new, jnp.asarray(old, jnp.result_type(new)))
        seen = Steps(obs, reward, done, cut, jnp.any(jnp.stack(differ)))
        return jax.tree.map(choose, fresh, state), seen

    def one(key):
        k_begin, k_play = jax.random.split(key)
        state = jax.tree.map(_strong, subject.begin(k_begin)[1])
        return jax.lax.scan(step, state, jax.random.split(k_play, length))[1]

    return jax.jit(jax.vmap(one, out_axes=1))(jax.random.split(key, number))


def _strong(leaf):
    return jnp.asarray(leaf, jnp.result_type(leaf))


# --- of the functions ----------------------------------------------------------------------------


def finite(subject: Subject, play: Steps) -> Iterator[Fault]:
    """Numbers are finite, and observations within their space."""
    for what, tree in (("observation", play.obs), ("reward", play.reward)):
        for leaf in jax.tree.leaves(tree):
            bad = ~np.isfinite(np.asarray(leaf, np.float32))
            if bad.any():
                yield Fault(
                    "finite",
                    f"a {what} of {subject.name!r} is {np.asarray(leaf)[bad][0]} after "
                    f"{int(np.argwhere(bad)[0][0]) + 1} random steps",
                    "Look for 0 / 0, log 0 and exp of large numbers: jax.debug_nans(True).",
                )
    space = observation_space(subject)
    if not hasattr(space, "low") or not hasattr(play.obs, "shape"):
        return
    obs = np.asarray(play.obs, np.float32)
    low, high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))
    slack = 1e-4 * (1 + np.abs(np.where(np.isfinite(high), high, 0.0)))
    out = (obs < low - slack) | (obs > high + slack)
    if out.any():
        worst = obs[out][np.argmax(np.abs(obs[out]))]
        yield Fault(
            "bounds",
            f"an observation of {subject.name!r} is {worst:g}, its observation_space goes from "
            f"{np.min(low):g} to {np.max(high):g}",
            "Widen the space or clip the observation; jaxkd looks at neither bound.",
            grave=False,
        )


def ends(subject: Subject, play: Steps) -> Iterator[Fault]:
    """Ends are true or false, and time limits apart from them."""
    done, cut = np.asarray(play.done), np.asarray(play.truncated)
    if not np.isin(done, (0, 1)).all():
        value = done[~np.isin(done, (0, 1))][0]
        yield Fault(
            "done",
            f"done of {subject.name!r} is {value}: neither true nor false",
            "Return a bool [] from step_env.",
        )
    both = cut & (done != 0)
    if both.sum() >= 4 and not (cut & (done == 0)).any():
        yield Fault(
            "time limit",
            f"done of {subject.name!r} is true in each of the {both.sum()} steps in which "
            f"is_truncated is: a time limit would count as a termination, worth 0",
            "Leave the limit to is_truncated, and let done mean a natural end.",
        )
    length = subject.size[0]
    if not (cut | (done != 0)).any() and (subject.limit or length) <= length:
        limit = f"its limit of {subject.limit}" if subject.limit else str(length)
        yield Fault(
            "endless",
            f"no episode of {subject.name!r} ended in {length} random steps, "
            f"{'beyond ' if subject.limit else 'and no time limit is known: more than '}{limit}",
            "Let is_truncated(state, params) cut, or give max_steps= to envs.make.",
            grave=bool(subject.limit),
        )


def moves(subject: Subject, play: Steps) -> Iterator[Fault]:
    """Actions and steps change something."""
    if not np.any(play.moved):
        yield Fault(
            "action",
            f"no action of {subject.name!r} changed anything in {play.moved.size} random steps",
            "Let step_env read the action.",
            grave=False,
        )
    if all(np.ptp(np.asarray(leaf, np.float32)) == 0 for leaf in jax.tree.leaves(play.obs)):
        yield Fault(
            "one observation",
            f"all observations of {subject.name!r} are equal",
            "A policy cannot tell states apart, unless it is a bandit.",
            grave=False,
        )


def observation_space(subject: Subject) -> Any:
    made = getattr(subject.environment, "observation_space", None)
    if made is None:
        return None
    with protocol.settings(subject.environment):
        return made(subject.params)
