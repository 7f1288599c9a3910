"""What the scripts of these folders share: keys by name, THE teacher, scores of whole episodes,
arms that a cut run need not run again, and how results are written.

Legend of shapes: `n` seeds.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

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
# Of presets, before they had sticky actions: studies that were made with these keep them.
BEFORE_STICKY = {
    "Breakout-MinAtar": {
        "sticky": 0.0,
        "num_steps": 1_000_000,
        "student_steps": 1_000_000,
        "student_learning_rate": 1e-3,
    }
}
# What presets become at the size "tiny": every line runs, nothing is learnt.
TINY_PRESET = {
    "num_envs": 8,
    "unroll_length": 4,
    "num_epochs": 1,
    "num_minibatches": 1,
    "num_steps": 32,
    "hidden": (4,),
    "channels": (),
    "student_steps": 32,
    "student_epochs": 1,
}


# What presets of MinAtar were when studies were run that have not been since, see `earlier`.
EARLIER = {
    "sticky": 0.0,
    "num_steps": 1_000_000,
    "student_steps": 1_000_000,
    "student_learning_rate": 1e-3,
}


class Teacher(NamedTuple):
    """The one teacher that the students' seeds share, the best of several; the spread of all."""

    params: Any
    score: float  # greedy, on keys other than those it was chosen by
    discounted: float
    best: int  # its seed
    returns: np.ndarray  # [n] of all
    discounted_returns: np.ndarray  # [n]
    seconds: float = 0.0  # of training and scoring all


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
    default the environment's own; an arm of its own, which studies share.
    """
    p = p or presets.preset(name)
    env = presets.make_env(name, p)
    policy = presets.teacher_network(env, p)
    algorithm, updates = presets.teaching(env, policy, p)

    def teach() -> dict:
        state, metrics = jaxkd.run(jaxkd.lanes(algorithm), keys(seed, "teacher", n), updates)
        found = the_teacher(arena, policy, state.params, seed, episodes)
        return {"teacher": as_lists(found), "curve": metrics["return"]}

    taught = {k: v for k, v in p._asdict().items() if not k.startswith("student")}
    settings = {"preset": taught, "seed": seed, "episodes": episodes, "arena": arena.num_envs}
    arm = f"ppo, {n} seeds"
    made, seconds = arms(f"teachers/{name}", {arm: teach}, lambda _: settings)
    found = as_teacher(policy, made[arm]["teacher"], seconds[arm])
    return policy, found, np.asarray(made[arm]["curve"]), steps_of(p)


def as_lists(teacher: Teacher) -> dict:
    """A teacher as an arm keeps it."""
    return teacher._asdict() | {"params": jax.tree.leaves(teacher.params)}


def as_teacher(policy, found: dict, seconds: float) -> Teacher:
    """The teacher that was kept, and how long it took to make."""
    made = Teacher(**found)
    return made._replace(
        params=params_of(policy, made.params),
        returns=np.asarray(made.returns),
        discounted_returns=np.asarray(made.discounted_returns),
        seconds=seconds,
    )


def params_of(policy, leaves: list) -> Any:
    """A policy's parameters from their leaves, as an arm keeps them."""
    shapes, structure = jax.tree.flatten(jax.eval_shape(policy.init, jax.random.key(0)))
    arrays = [jnp.asarray(x, like.dtype) for x, like in zip(leaves, shapes, strict=True)]
    return jax.tree.unflatten(structure, arrays)


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


def steps_of(p: Preset) -> int:
    """Environment steps of a teacher's training."""
    return presets.updates(p, p.num_steps) * p.num_envs * p.unroll_length


def preset(name: str, size: Any, before: dict[str, dict] | None = None) -> Preset:
    """An environment's preset, with what a study keeps of earlier ones (BEFORE_STICKY), and what a
    size puts in place of its fields.
    """
    return presets.preset(name)._replace(**((before or {}).get(name, {}) | size.preset))


def earlier(name: str, size: Any) -> Preset:
    """`preset` as no_harm.py and who_acts.py had it, and gates.py in games that it names there."""
    p = preset(name, size)
    return p._replace(**EARLIER) if p.channels else p


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


def constants(module: dict, kinds: Any) -> dict:
    """A script's constants of these types, by name; SIZES is told by `smaller`."""
    return {
        k: v for k, v in module.items() if k.isupper() and k != "SIZES" and isinstance(v, kinds)
    }


def smaller(size: Any) -> dict:
    """What settings hold of a size beside the full one, which is what its fields are by default."""
    return {} if size == type(size)() else {"size": size._asdict()}


@contextmanager
def live(what: str, total: int) -> Iterator[Callable[[str, int], None]]:
    """A line on the terminal while something runs: which part, how many done of how many, seconds
    so far; in a log a line a part. Gives what is called with a part that begins, and how many are
    done.
    """
    console, began = Console(stderr=True), time.perf_counter()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # What is printed meanwhile goes where it went.
    line = Progress(
        *columns,
        console=console,
        transient=True,
        refresh_per_second=1,  # what is measured meanwhile is not to notice
        redirect_stdout=sys.stdout.isatty(),
        disable=not console.is_terminal,
    )
    task = line.add_task(what)

    def begin(part: str, done: int) -> None:
        told = f"{what}: {part}, {done} of {total} done"
        line.update(task, description=told)
        if not console.is_terminal:
            print(f"{told}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)

    with line:
        yield begin


@cache
def engine() -> str:
    """Digest of the library's source and of what it runs on; starts no backend, which children of
    a script may need for themselves.
    """
    files = sorted(Path(jaxkd.__file__).parent.rglob("*.py"))
    source = b"".join(file.read_bytes() for file in files)
    made = f"{versions()} {os.environ.get('JAX_PLATFORMS')}"
    return hashlib.sha256(source + made.encode()).hexdigest()


def arms(
    name: str,
    runs: dict[str, Callable[[], Any]],
    settings: Callable[[str], Any],
    tell: Callable[[Any], str] = lambda found: "",
) -> tuple[dict[str, Any], dict[str, float]]:
    """What every arm has found, and its seconds, by the arm's name.

    An arm is written as soon as it is done, and not run again by a later call that would do the
    same: settings, random streams, library and versions stay. Each size keeps its own.

    Args:
        name: of the file, "who_acts/CartPole-v1".
        runs: {arm: what runs it and returns what JSON can hold, arrays included}.
        settings: arm -> all that it depends on beside the library.
        tell: what it found -> a line for the terminal.
    """
    file = Path(frame.place().kept) / f"{name}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    with live(name, len(runs)) as begin:
        for done, (arm, run) in enumerate(runs.items()):
            made = digest({"settings": settings(arm), "engine": engine()})["digest"]
            old = not frame.place().fresh and known.get(arm, {}).get("digest") == made
            if not old:
                begin(arm, done)
                began = time.perf_counter()
                found = json.loads(json.dumps(run(), default=lambda x: np.asarray(x).tolist()))
                seconds = time.perf_counter() - began
                known[arm] = {"digest": made, "seconds": seconds, "found": found}
                _replace(file, known)
            took = f"{known[arm]['seconds']:.0f} s{', kept from an earlier run' if old else ''}"
            print(f"{name}: {arm:24} {tell(known[arm]['found'])} {took}", flush=True)
    found, seconds = ({arm: known[arm][part] for arm in runs} for part in ("found", "seconds"))
    return found, seconds


def forget(name: str) -> None:
    """What was measured is measured anew by the next call: speeds are of their day."""
    (Path(frame.place().kept) / f"{name}.json").unlink(missing_ok=True)


def _replace(file: Path, values: dict) -> None:
    """Writes the file as one whole: a cut leaves the one before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(values))
    part.replace(file)


def verdict(failed: list[str]) -> int:
    """Prints what does not hold; the script's exit code, 0 where a smaller size cannot hold it."""
    label = frame.place().label
    print(*failed or ["passed"], sep="\n", flush=True)
    if failed and label != frame.FULL:
        print(f"size {label}: what is wanted is wanted of the full size")
        return 0
    return len(failed)


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
    label = frame.place().label
    path = Path(frame.place().folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = result | {"device": describe(jax.devices()[0]), "versions": versions()}
    made |= {"commit": commit()} | ({} if label == frame.FULL else {"size": label})
    path.write_text(json.dumps(made, indent=1, default=float) + "\n")
    if figure is not None:
        figure.savefig(path.with_suffix(".png"), dpi=80)


def by_game(
    folder: str, names: tuple[str, ...], games: tuple[str, ...], experiment: Any, settings: dict
) -> dict[str, dict]:
    """Runs the named games (default all), each into <folder>/<game>.json; all games' results, or {}
    while one is missing or was made with other settings.
    """
    for name in frame.chosen(names, games):
        write(f"{folder}/{name}", experiment(name) | {"settings": settings})
    files = {name: Path(frame.place().folder) / folder / f"{name}.json" for name in games}
    found = {k: json.loads(file.read_text()) for k, file in files.items() if file.exists()}
    todays = [name for name in found if found[name]["settings"]["digest"] == settings["digest"]]
    return found if set(todays) == set(games) else {}


def over_games(
    name: str,
    given: frame.Study,
    size: Any,
    experiment: Callable[..., dict],
    settings: dict,
    judge: Callable[[dict[str, dict]], dict],
    draw: Callable[[dict[str, dict], Any], Any],
) -> int:
    """The main function of a study of several games: as soon as all of them have been run with
    these settings, judges and draws what they say together. The script's exit code.

    Args:
        experiment: (game, size=) -> its result.
        judge: {game: result} -> what it says of all, "failed" among it.
        draw: ({game: result}, size) -> a picture.
    """
    one = partial(experiment, size=size)
    if not (results := by_game(name, given.names, size.games, one, settings)):
        return 0
    found = judge(results)
    write(name, found | {"settings": settings}, draw(results, size))
    return verdict(found["failed"])
