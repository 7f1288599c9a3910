"""What bfloat16 gains and costs: the same teacher and students, their networks computed in float32
and in bfloat16 (weights stay float32).

    python benchmarks/speed/precision.py

CartPole's preset: SEEDS teachers in a call, THE teacher, SEEDS students of one hidden layer of 44,
each dtype with a teacher of its own; greedy returns of students acting alone. Speed: the
distillation of one seed by a plain `run`, both dtypes in turns, medians of ROUNDS. Writes
results/speed/precision.json.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Given, __doc__, __file__)

import statistics
import time

import jax
import jax.numpy as jnp

import jaxkd
from benchmarks import protocol
from jaxkd import presets

SEED, SEEDS, EPISODES, STUDENT, ROUNDS, UPDATES = 3, 10, 128, (44,), 7, 200
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def teach(dtype, p, arena):
    """(policy, THE teacher)."""
    env = presets.make_env("CartPole-v1", p)
    policy = jaxkd.networks.mlp(env, p.hidden, separate=True, dtype=dtype)
    ppo, updates = presets.teaching(env, policy, p)
    state, _ = jaxkd.run(jaxkd.lanes(ppo), protocol.keys(SEED, "teacher", SEEDS), updates)
    return policy, protocol.the_teacher(arena, policy, state.params, SEED, EPISODES)


def settings() -> dict:
    values = dict(seed=SEED, seeds=SEEDS, episodes=EPISODES, student=STUDENT, updates=UPDATES)
    return protocol.digest(values | {"preset": protocol.changed(presets.preset("CartPole-v1"))})


def main() -> None:
    p = presets.preset("CartPole-v1")
    env, arena = (
        presets.make_env("CartPole-v1", p),
        presets.make_env("CartPole-v1", p._replace(num_envs=EPISODES)),
    )
    found, runs = {}, {}
    for name, dtype in DTYPES.items():
        policy, teacher = teach(dtype, p, arena)
        student = jaxkd.networks.mlp(env, STUDENT, dtype=dtype)
        kd, updates = presets.distillation(env, student, policy, p)
        state, _ = jaxkd.run(
            jaxkd.lanes(kd), protocol.keys(SEED, "student", SEEDS), updates, teacher.params
        )
        returns, _ = protocol.score(
            arena, student, state.params, protocol.keys(SEED, "score", SEEDS), EPISODES
        )
        found[name] = {
            "teacher": teacher.score,
            "student": protocol.summary(returns),
            "seconds": [],
        }
        runs[name] = lambda kd=kd, params=teacher.params: jax.block_until_ready(
            jaxkd.run(kd, jax.random.key(0), UPDATES, params)
        )
        runs[name]()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            found[name]["seconds"].append(time.perf_counter() - began)
    steps = p.num_envs * p.unroll_length * UPDATES
    for name, figures in found.items():
        figures["steps_per_second"] = steps / statistics.median(figures["seconds"])
        print(
            f"{name}: teacher {figures['teacher']:.1f}, students {figures['student']['mean']:.1f} "
            f"(worst {figures['student']['worst']:.1f}), {figures['steps_per_second'] / 1e3:,.0f}k steps/s"
        )
    protocol.write("precision", {"settings": settings(), "dtypes": found})


if __name__ == "__main__":
    main()
