"""What bfloat16 gains and costs: the same teacher and students, their networks computed in float32
and in bfloat16 (weights stay float32).

    python benchmarks/speed/precision.py

CartPole's preset: ten teachers in a call, THE teacher, ten students of one hidden layer of 44, each
dtype with a teacher of its own; greedy returns of students acting alone. Speed: the distillation of
one seed by a plain `run`, both dtypes in turns, medians of seven rounds. Writes
results/speed/precision.json.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Seeded, __doc__, __file__)

import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxkd
from benchmarks import protocol
from jaxkd import presets

SEED, STUDENT = 3, (44,)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    seeds: int = 10
    episodes: int = 128
    rounds: int = 7
    updates: int = 200  # of a timed run
    preset: dict = {}


SIZES = {"full": Sizes(), "cpu": Sizes(), "tiny": Sizes(1, 2, 1, 1, protocol.TINY_PRESET)}


def teach(dtype, p, arena, size: Sizes):
    """(policy, THE teacher)."""
    env = presets.make_env("CartPole-v1", p)
    policy = jaxkd.networks.mlp(env, p.hidden, separate=True, dtype=dtype)
    ppo, updates = presets.teaching(env, policy, p)
    state, _ = jaxkd.run(jaxkd.lanes(ppo), protocol.keys(SEED, "teacher", size.seeds), updates)
    return policy, protocol.the_teacher(arena, policy, state.params, SEED, size.episodes)


def settings(size: Sizes = SIZES["full"]) -> dict:
    values = dict(seed=SEED, seeds=size.seeds, episodes=size.episodes, student=STUDENT)
    values |= {"updates": size.updates}
    given = protocol.changed(protocol.preset("CartPole-v1", size))
    return protocol.digest(values | {"preset": given} | protocol.smaller(size))


def learn(size: Sizes, begin) -> tuple[dict, dict]:
    """By dtype: returns of teacher and students, and what runs a timed distillation."""
    p = protocol.preset("CartPole-v1", size)
    env, arena = (
        presets.make_env("CartPole-v1", p),
        presets.make_env("CartPole-v1", p._replace(num_envs=size.episodes)),
    )
    found, runs = {}, {}
    for done, (name, dtype) in enumerate(DTYPES.items()):
        begin(name, done)
        policy, teacher = teach(dtype, p, arena, size)
        student = jaxkd.networks.mlp(env, STUDENT, dtype=dtype)
        kd, updates = presets.distillation(env, student, policy, p)
        state, _ = jaxkd.run(
            jaxkd.lanes(kd), protocol.keys(SEED, "student", size.seeds), updates, teacher.params
        )
        returns, _ = protocol.score(
            arena, student, state.params, protocol.keys(SEED, "score", size.seeds), size.episodes
        )
        found[name] = {
            "teacher": teacher.score,
            "student": protocol.summary(returns),
            "seconds": [],
        }
        runs[name] = lambda kd=kd, params=teacher.params: jax.block_until_ready(
            jaxkd.run(kd, jax.random.key(0), size.updates, params)
        )
        runs[name]()
    return found, runs


def main(given: frame.Seeded) -> None:
    size = frame.sized(given, SIZES)
    with protocol.live("precision", len(DTYPES)) as begin:
        found, runs = learn(size, begin)
    for _ in range(size.rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            found[name]["seconds"].append(time.perf_counter() - began)
    p = protocol.preset("CartPole-v1", size)
    steps = p.num_envs * p.unroll_length * size.updates
    for name, figures in found.items():
        figures["steps_per_second"] = steps / statistics.median(figures["seconds"])
        print(
            f"{name}: teacher {figures['teacher']:.1f}, students {figures['student']['mean']:.1f} "
            f"(worst {figures['student']['worst']:.1f}), {figures['steps_per_second'] / 1e3:,.0f}k "
            "steps/s"
        )
    protocol.write("precision", {"settings": settings(size), "dtypes": found})


if __name__ == "__main__":
    main(GIVEN)
