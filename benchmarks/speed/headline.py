"""The main job in ONE compiled call: teachers, students of 1/15 of their size, the same students
without a teacher, every policy scored alone.

    python benchmarks/speed/headline.py [CartPole-v1] [--seeds 16]

One jit of one vmap over seeds: each seed trains its own teacher with PPO, distils it while the
student acts, trains the control (PPO, the student's network and number of steps), and plays greedy
episodes with each. Prints the table, writes results/speed/headline.json. `jaxkd distill` does the
same job with a live line, files for every seed and a safe Ctrl-C, for which it looks at the run
between updates.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Headline, __doc__, __file__)

import time
from typing import NamedTuple

import jax
import numpy as np
from rich.table import Table

import jaxkd
from benchmarks import protocol
from jaxkd import presets, report
from jaxkd.cli.device import describe

ROLES = {"teacher": "teacher", "student": "student", "control": "same network, no teacher"}


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    seeds: int = 16
    episodes: int = 128  # greedy, of each policy and seed
    preset: dict = {}


SIZES = {"full": Sizes(), "cpu": Sizes(), "tiny": Sizes(2, 2, protocol.TINY_PRESET)}


def job(name: str, chosen: Sizes):
    """The experiment of one key -> dict of mean greedy returns [], the actors' sizes, and the
    environment steps of a seed.
    """
    p = protocol.preset(name, chosen)
    env = presets.make_env(name, p)
    teacher = presets.teacher_network(env, p)
    shapes = jax.eval_shape(teacher.init, jax.random.key(0))
    size = jaxkd.actor_size(teacher, shapes, env.obs_spec)
    student = presets.student_network(env, p, "auto:1/15", size)
    small = jaxkd.actor_size(student, jax.eval_shape(student.init, jax.random.key(0)), env.obs_spec)
    phases = {
        "teacher": presets.teaching(env, teacher, p),
        "student": presets.distillation(env, student, teacher, p),
        "control": presets.teaching(env, student, p, p.student_steps),
    }

    def experiment(key):
        keys = dict(zip([*phases, "score"], jax.random.split(key, 4)))
        params = {}
        for name, (algorithm, num_updates) in phases.items():
            inputs = (params["teacher"],) if name == "student" else ()
            params[name] = jaxkd.run(algorithm, keys[name], num_updates, *inputs)[0].params

        def score(name):
            policy = teacher if name == "teacher" else student
            return jaxkd.evaluate(
                env, policy, params[name], keys["score"], num_episodes=chosen.episodes
            ).returns.mean()

        return {name: score(name) for name in phases}

    steps = {name: n * p.num_envs * p.unroll_length for name, (_, n) in phases.items()}
    return experiment, {"teacher": size, "student": small, "control": small}, steps


def played(given: frame.Headline, size: Sizes, experiment) -> tuple[dict, dict[str, float]]:
    """(returns [seeds] of each role, seconds of compiling and running): the one compiled call."""
    with protocol.live(f"{given.env}, {size.seeds} seeds", 1) as begin:
        begin("teacher, student and control in one compiled call", 0)
        keys = jaxkd.seeds(given.seed, size.seeds)
        began = time.perf_counter()
        program = jax.jit(jax.vmap(experiment)).lower(keys).compile()
        compiled = time.perf_counter()
        returns = jax.block_until_ready(program(keys))
        ended = time.perf_counter()
    seconds = {"compile": round(compiled - began, 1), "run": round(ended - compiled, 1)}
    return returns, seconds


def table(name: str, size: Sizes, rows: dict[str, dict]) -> Table:
    """What `make demo` shows."""
    shown = Table(
        "policy",
        title=f"{name}: {size.seeds} seeds, {size.episodes} greedy episodes each, "
        "every policy acting alone",
    )
    for heading in (
        "return IQM [95 % interval]",
        "worst seed",
        "actor parameters",
        "environment steps",
    ):
        shown.add_column(heading, justify="right")
    for name, row in rows.items():
        low, high = row["interval"]
        shown.add_row(
            ROLES[name],
            f"{row['iqm']:.1f} [{low:.1f}, {high:.1f}]",
            f"{row['worst']:.1f}",
            f"{row['actor_parameters']:,}",
            f"{row['env_steps']:,}",
        )
    return shown


def main(given: frame.Headline) -> None:
    print(f"device: {describe(jax.devices()[0])}", flush=True)
    console, size = report.console(), frame.sized(given, SIZES)
    size = size._replace(episodes=given.episodes or size.episodes)
    experiment, sizes, steps = job(given.env, size)
    returns, seconds = played(given, size, experiment)
    rows = {}
    for name in ROLES:
        x = np.asarray(returns[name], np.float64)
        rows[name] = protocol.summary(x) | {
            "actor_parameters": sizes[name],
            "env_steps": steps[name],
        }
    console.print(table(given.env, size, rows))
    console.print(
        f"one compiled call: {seconds['run']} s, and {seconds['compile']} s of compiling",
        highlight=False,
    )
    chosen = dict(env=given.env, seeds=size.seeds, seed=given.seed, episodes=size.episodes)
    chosen |= {"preset": protocol.changed(protocol.preset(given.env, size))}
    result = {"settings": protocol.digest(chosen), "rows": rows, "seconds": seconds}
    protocol.write("headline", result)


if __name__ == "__main__":
    main(GIVEN)
