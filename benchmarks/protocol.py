"""What the scripts of this folder share: keys by name, THE teacher, scores of whole episodes, and
how results are written.

Legend of shapes: `n` seeds.
"""

import hashlib
import json
import subprocess
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np

import jaxkd
from benchmarks import frame
from jaxkd import presets
from jaxkd.cli.device import describe
from jaxkd.cli.summary import versions
from jaxkd.optimize import component_key
from jaxkd.presets import Preset

matplotlib.use("Agg")

RESULTS = frame.RESULTS  # the committed ones
# Of the random streams: one more whenever a key is derived or used otherwise, so that the same
# settings give other numbers. tests/test_results.py pins the keys, tests/test_cli.py a tiny run.
STREAMS = 1
DEFAULTS = {  # of `Preset`, 2026-11: never edited, see `changed`
    "num_envs": 64,
    "unroll_length": 32,
    "num_epochs": 4,
    "num_minibatches": 4,
    "learning_rate": 0.003,
    "gamma": 0.99,
    "lambda_": 0.95,
    "entropy": 0.01,
    "normalise_obs": False,
    "normalise_reward": False,
    "num_steps": 250000,
    "hidden": (64, 64),
    "channels": (),
    "student_steps": 100000,
    "student_epochs": 4,
    "student_learning_rate": 0.003,
    "gate": None,
}


class Teacher(NamedTuple):
    """The one teacher that the students' seeds share: the best of several, and the spread of all."""

    params: Any
    score: float  # greedy, on keys other than those it was chosen by
    discounted: float
    best: int  # its seed
    returns: np.ndarray  # [n] of all
    discounted_returns: np.ndarray  # [n]


def keys(seed: int, name: str, n: int) -> jax.Array:
    """n keys [n] of a named part of an experiment, different from every other part's."""
    return jax.vmap(lambda key: component_key(key, name))(jaxkd.seeds(seed, n))


def score(
    env, policy, params, keys, episodes: int, *, greedy: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Mean return and mean discounted return [n] of parameter sets [n, ...], acting alone."""

    def one(params, key):
        played = jaxkd.evaluate(env, policy, params, key, num_episodes=episodes, greedy=greedy)
        return played.returns.mean(), played.discounted_returns.mean()

    returns, discounted = jax.jit(jax.vmap(one))(params, keys)
    return np.asarray(returns, np.float64), np.asarray(discounted, np.float64)


def the_teacher(arena, policy, all_params, seed: int, episodes: int) -> Teacher:
    """The best of `all_params` [n, ...] by greedy episodes, scored again on other keys."""
    n = jax.tree.leaves(all_params)[0].shape[0]
    returns, discounted = score(
        arena, policy, all_params, keys(seed, "score teacher True", n), episodes
    )
    best = int(returns.argmax())
    params = jax.tree.map(lambda x: x[best], all_params)
    again = score(
        arena,
        policy,
        jax.tree.map(lambda x: x[None], params),
        keys(seed, "score the teacher True", 1),
        episodes,
    )
    return Teacher(params, float(again[0][0]), float(again[1][0]), best, returns, discounted)


def ppo_teacher(
    name: str, arena, seed: int, episodes: int, n: int, p: Preset | None = None
) -> tuple[Any, Teacher, np.ndarray, int]:
    """(policy, THE teacher, learning curves [updates, n], environment steps of one) of a preset,
    default the environment's own.
    """
    p = p or presets.preset(name)
    env = presets.make_env(name, p)
    policy = presets.teacher_network(env, p)
    algorithm, updates = presets.teaching(env, policy, p)
    state, metrics = jaxkd.run(jaxkd.lanes(algorithm), keys(seed, "teacher", n), updates)
    found = the_teacher(arena, policy, state.params, seed, episodes)
    return policy, found, np.asarray(metrics["return"]), updates * p.num_envs * p.unroll_length


def random_return(arena, seed: int, episodes: int) -> float:
    """Of the policy that knows nothing, sampled."""
    ignorant = presets.random_policy(arena)
    return float(
        score(
            arena,
            ignorant,
            jax.vmap(ignorant.init)(keys(seed, "random", 1)),
            keys(seed, "score random False", 1),
            episodes,
            greedy=False,
        )[0][0]
    )


def learning_curve(
    arena, student, algorithm, num_updates: int, checks: int, key, *inputs
) -> tuple[Any, jax.Array]:
    """(the last state, mean greedy returns [checks] of the student alone), checked at equal
    distances; for one key, to be vmapped.

    Args:
        arena: as many environments as episodes a check.
    """

    def check(state, key):
        state = jax.lax.scan(
            lambda state, _: (algorithm.step(state, *inputs)[0], None),
            state,
            length=num_updates // checks,
        )[0]
        return state, jaxkd.evaluate(
            arena, student, state.params, key, num_episodes=arena.num_envs
        ).returns.mean()

    return jax.lax.scan(
        check, algorithm.init(key), jax.random.split(component_key(key, "check"), checks)
    )


def steps_of_checks(p: Preset, num_updates: int, checks: int) -> np.ndarray:
    """Environment steps of one seed at every check of `learning_curve`, which leaves out the
    updates that `checks` does not divide.
    """
    return np.arange(1, checks + 1) * (num_updates // checks) * p.num_envs * p.unroll_length


def summary(values: np.ndarray) -> dict:
    """Mean, worst seed, interquartile mean with its 95 % bootstrap interval, and every seed."""
    return {
        "mean": values.mean(),
        "worst": values.min(),
        "iqm": jaxkd.iqm(values),
        "interval": jaxkd.interval(values),
        "seeds": values.tolist(),
    }


def changed(record: Any, defaults: dict | None = None) -> dict:
    """The fields of a record that are not what they were by default when results were first kept.

    A field that is new and at its default changes nothing, hence is not told; a default that
    changes is, because it is no longer in `defaults`, those of then (of a preset: DEFAULTS).
    """
    usual = record._field_defaults | (DEFAULTS if defaults is None else defaults)
    return {name: value for name, value in record._asdict().items() if value != usual[name]}


def digest(settings: dict, streams: int | None = STREAMS) -> dict:
    """The settings a result depends on, with their digest: a test compares it with today's."""
    settings = settings | ({} if streams is None else {"streams": streams})
    text = json.dumps(settings, sort_keys=True, default=str)
    return settings | {"digest": hashlib.sha256(text.encode()).hexdigest()[:16]}


def commit() -> str:
    """What made a figure: "639b2a7", with "-dirty" where code had changed since, or "unknown".

    There, with the versions written beside it and on such a processor, it has the same bits.
    """
    code = ["--", "jaxkd", ":(glob)benchmarks/**/*.py"]
    asked = (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", *code])
    try:
        given: dict = dict(cwd=frame.RESULTS.parents[1], capture_output=True, text=True, check=True)
        name, changes = (subprocess.run(["git", *words], **given).stdout.strip() for words in asked)
    except (OSError, subprocess.CalledProcessError):  # no git, no checkout
        return "unknown"
    return f"{name}-dirty" if changes else name


def write(name: str, result: dict, figure: Any = None) -> None:
    """<name>.json with device and versions, and <name>.png; committed ones only with --commit."""
    path = frame.folder() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = result | {"device": describe(jax.devices()[0]), "versions": versions()}
    made |= {"commit": commit()}
    path.write_text(json.dumps(made, indent=1, default=float) + "\n")
    if figure is not None:
        figure.savefig(path.with_suffix(".png"), dpi=80)


def by_game(
    folder: str, names: list[str], games: tuple[str, ...], experiment: Any, settings: dict
) -> dict[str, dict]:
    """Runs the named games (default all), each into <folder>/<game>.json; all games' results, or {}
    while one is missing.
    """
    for name in names or games:
        write(f"{folder}/{name}", experiment(name) | {"settings": settings})
    files = [frame.folder() / folder / f"{name}.json" for name in games]
    return (
        {file.stem: json.loads(file.read_text()) for file in files}
        if all(file.exists() for file in files)
        else {}
    )
