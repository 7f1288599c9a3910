"""A nan in ONE seed's reward, observation or gradient: who is lost, and are the others the same?

Legend of shapes: `n` seeds.
"""

import contextlib
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console

import jaxkd
from jaxkd.base import Algorithm, RewardTransform
from jaxkd.cli import directory, failure, log, phases, progress, training

KINDS = ("reward", "observation", "gradient")
METHODS = ("ppo", "kickstarting")
SEEDS, UPDATES = 3, 5


class Point(NamedTuple):
    """Where a nan is put."""

    kind: str
    method: str
    seed: int
    update: int


class Poison(NamedTuple):
    """State of a component that may make a nan."""

    update: jax.Array  # int32 [], when; -1: never
    now: jax.Array  # int32 []


def made(method: str) -> tuple[Algorithm, Any]:
    """An algorithm of one seed with a place for a nan in reward and gradient, and its inputs."""
    env = jaxkd.envs.make("CartPole-v1", 4)
    policy = jaxkd.networks.mlp(env, (8,))

    def fresh() -> Poison:
        return Poison(jnp.int32(-1), jnp.int32(0))

    def nan_now(state: Poison) -> tuple[jax.Array, Poison]:
        bad = jnp.where(state.update == state.now, jnp.nan, 0.0)
        return bad, state._replace(now=state.now + 1)

    def reward(reward, state, batch, context):
        bad, state = nan_now(state)
        return reward.at[0, 0].add(bad), state

    def gradient(updates, state, params=None):
        bad, state = nan_now(state)
        return jax.tree.map(lambda x: x + bad, updates), state

    poisoned = optax.GradientTransformation(lambda params: fresh(), gradient)
    keywords: dict[str, Any] = dict(
        rewards={"poison": RewardTransform(lambda key, spec: fresh(), reward)},
        optimizer=optax.chain(poisoned, optax.adam(1e-3)),
        unroll_length=8,
        num_epochs=1,
        num_minibatches=1,  # so that gradients are counted as updates are
    )
    if method == "ppo":
        return jaxkd.ppo(env, policy, **keywords), ()
    teacher = jaxkd.networks.mlp(env, (8,))
    student = jaxkd.methods.kickstarting(env, policy, teacher, **keywords)
    return student, (teacher.init(jax.random.key(1)),)


class Where(NamedTuple):
    """A point as an input of the program: one program for all points, and for none."""

    updates: jax.Array  # int32 [KINDS], when; -1: never
    seed: jax.Array  # int32 []


def where(point: Point | None) -> Where:
    if point is None:
        return Where(jnp.full(len(KINDS), -1), jnp.int32(0))
    when = [point.update if kind == point.kind else -1 for kind in KINDS]
    return Where(jnp.array(when), jnp.int32(point.seed))


@functools.cache
def poisoned(method: str) -> tuple[Algorithm, Any]:
    """All seeds, with a nan where the first input of a step says; and its further inputs."""
    algorithm, inputs = made(method)
    many = jaxkd.lanes(algorithm)

    def step(state, place, *inputs):
        own = jnp.arange(SEEDS) == place.seed
        when = jnp.where(own, place.updates[:, None], -1)  # [KINDS, n]
        bad = jnp.where(state.update == when[1], jnp.nan, 0.0)
        obs = state.actors.obs + bad[:, None, None]
        state = state._replace(
            actors=state.actors._replace(obs=obs),
            rewards=_timed(state.rewards, when[0]),
            opt_state=_timed(state.opt_state, when[2]),
        )
        return many.step(state, *inputs)

    return Algorithm(many.init, step, algorithm.description), inputs


def _timed(tree: Any, when: jax.Array) -> Any:
    """The Poisons in a part of the state [n], each with its time."""
    is_poison = lambda x: isinstance(x, Poison)
    set_time = lambda x: x._replace(update=when) if is_poison(x) else x
    return jax.tree.map(set_time, tree, is_leaf=is_poison)


def trained(folder: Path, method: str, point: Point | None) -> tuple[Any, str, int]:
    """(params [n] on the host, what was said, exit code) as the command trains."""
    algorithm, inputs = poisoned(method)
    folder.mkdir(parents=True)
    shown = progress.Progress(rich.console.Console(file=io.StringIO()), quiet=True)
    run, lines = directory.Directory(folder), log.Log(folder / log.METRICS)
    keys, said = jaxkd.seeds(0, SEEDS), io.StringIO()
    job = phases.Job(run, shown, keys, lambda: 0.0, lambda: "", lines, "settings", 0.0)
    given: dict[str, Any] = dict(alive=np.ones(SEEDS, bool), steps_per_update=32)
    with contextlib.redirect_stderr(said):
        try:
            found = training.train(
                job, "teacher", algorithm, UPDATES, where(point), *inputs, **given
            )
        except failure.Diverged as error:
            return None, str(error), failure.explain(error)[0] or 1
    return jax.device_get(found.state.params), said.getvalue(), 0


def points(number: int) -> list[Point]:
    """So many, of all kinds, methods, seeds and updates in turn."""
    return [
        Point(KINDS[i % 3], METHODS[i // 3 % 2], (i + i // 6) % SEEDS, 1 + i // 6 % (UPDATES - 2))
        for i in range(number)
    ]


def trial(place: Path, point: Point, whole: Callable[[str], Any]) -> str:
    """ "named, others the same", or what was bad.

    Args:
        whole: (method) -> params [n] without a nan.
    """
    params, said, code = trained(place, point.method, point)
    if code or params is None:
        return f"bad: {point} ended with {code}"
    others = np.arange(SEEDS) != point.seed
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(whole(point.method)), strict=True)
    if not all(np.array_equal(ours[others], theirs[others]) for ours, theirs in pairs):
        return f"silent: others of {point} are not the same"
    if not said.startswith(f"error: run diverged: seeds {point.seed} not finite at update"):
        return f"bad: {point} said {said!r}"
    return "named, others the same"
