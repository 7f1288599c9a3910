"""Environment steps per second of raw stepping, PPO and distillation, against the floor of their parts, and compile seconds.

    python benchmarks/throughput.py [--quick]

Configuration: CartPole, 32 steps an update; PPO 4 epochs x 4 minibatches, MLP 64-64 with a critic apart; distillation 1 epoch x 4
minibatches, teacher 64-64, student 44, the student acts. floor = env-only scan + teacher forward + epochs x gradient, each timed
alone on [T * B]; efficiency = floor / engine. All of one row alternate in one process; medians of 5. Writes results/throughput.json.
"""

import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxkd
from jaxkd.losses import entropy, forward_kl, ppo_clip, td_mse

RESULTS = Path(__file__).parent / "results" / "throughput.json"
T, REPEATS, ROUNDS = 32, 50, 5


def compiled(fn, *args):
    """The compiled function and the seconds that tracing and compiling it took."""
    began = time.perf_counter()
    program = jax.jit(fn).lower(*args).compile()
    return program, time.perf_counter() - began


def alternate(programs: dict) -> dict[str, float]:
    """Median seconds of each program, {name: (program, args)}, run in turns."""
    for program, args in programs.values():
        jax.block_until_ready(program(*args))
    seconds = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, (program, args) in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*args))
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def env_only(env):
    """REPEATS scans of T steps with given actions, storing what a learner needs."""

    def fn(key, actions):
        def one(env_state, row):
            def body(env_state, row):
                env_state, step = env.step(row[0], env_state, row[1])
                return env_state, (step.obs, step.reward, step.terminated, step.truncated)

            env_state, rows = jax.lax.scan(body, env_state, (jax.random.split(row, T), actions))
            return env_state, jax.tree.map(lambda x: x[-1], rows)

        return jax.lax.scan(one, env.reset(key)[0], jax.random.split(key, REPEATS))

    return fn


def forward(policy):
    """REPEATS forward passes on [1, T * B]."""

    def fn(params, obs):
        def one(obs, _):
            out = policy.unroll(params, (), obs, jnp.zeros(obs.shape[:2]))[1]
            return obs + 1e-9 * out.policy.logits[..., :1], None

        return jax.lax.scan(one, obs, None, REPEATS)

    return fn


def gradient(policy, terms):
    """REPEATS whole-batch gradients of the terms on [1, T * B], each applied."""

    def fn(params, batch):
        def loss(params):
            out = policy.unroll(params, (), batch.obs, batch.reset)[1]
            return sum(term.loss((), out, batch, None).mean() for term in terms)

        def one(params, _):
            return jax.tree.map(lambda p, g: p - 1e-9 * g, params, jax.grad(loss)(params)), None

        return jax.lax.scan(one, params, None, REPEATS)

    return fn


def batch_of(policy, params, num):
    """A made-up batch [1, num]."""
    from jaxkd.base import Batch

    key = jax.random.key(3)
    obs, row = jax.random.normal(key, (1, num, 4)), jnp.ones((1, num))
    out = policy.unroll(params, (), obs, row)[1]
    action = jax.random.bernoulli(key, 0.5, (1, num)).astype(jnp.int32)
    values = dict(advantage=jax.random.normal(key, (1, num)), target=row, targets={"": row}, weight=row)
    return Batch(obs, (), action, row, row, row, row, (), out, out, **values)


def measure(sources: dict) -> tuple[dict, dict]:
    """Seconds of running and of compiling each of {name: (function, args)}."""
    built = {name: (*compiled(fn, *args), args) for name, (fn, args) in sources.items()}
    seconds = alternate({name: (program, args) for name, (program, _, args) in built.items()})
    return seconds, {name: spent for name, (_, spent, _) in built.items()}


def train(algorithm, updates):
    """The metrics of `updates` updates for every key."""
    return lambda keys, *inputs: jax.vmap(lambda key: jaxkd.run(algorithm, key, updates, *inputs)[1])(keys)


def row(num_envs: int, num_seeds: int) -> dict:
    """One configuration: figures of the engine and of its floor."""
    env = jaxkd.envs.make("CartPole-v1", num_envs)
    big, small = jaxkd.networks.mlp(env, (64, 64), separate=True), jaxkd.networks.mlp(env, (44,))
    keys, key = jaxkd.seeds(0, num_seeds), jax.random.key(1)
    params = {policy: policy.init(key) for policy in (big, small)}
    actions = jax.random.bernoulli(key, 0.5, (T, num_envs)).astype(jnp.int32)
    wide = env_only(env), forward(big), gradient(small, [forward_kl()]), gradient(big, [ppo_clip(), td_mse(), entropy()])
    lanes = num_envs * num_seeds
    everything = jaxkd.envs.make("CartPole-v1", lanes)
    actions = jnp.tile(actions, (1, num_seeds))
    batch, other = batch_of(small, params[small], T * lanes), batch_of(big, params[big], T * lanes)
    other = other._replace(teacher=())
    batch = batch._replace(acting=(), advantage=())
    kd = jaxkd.distill(env, small, big, losses={"kl": forward_kl()})
    ppo = jaxkd.ppo(env, big, learning_rate=2.5e-4)
    n = max(5, REPEATS * 2 // num_seeds)

    sources = {
        "env": (env_only(everything), (key, actions)),
        "teacher": (wide[1], (params[big], batch.obs)),
        "kd gradient": (wide[2], (params[small], batch)),
        "ppo gradient": (wide[3], (params[big], other)),
        "distillation": (train(kd, n), (keys, params[big])),
        "ppo": (train(ppo, max(2, n // 4)), (keys,)),
    }
    seconds, compile_seconds = measure(sources)
    per = {name: value / REPEATS for name, value in seconds.items()}
    per |= {"distillation": seconds["distillation"] / n, "ppo": seconds["ppo"] / max(2, n // 4)}
    floor = {
        "distillation": per["env"] + per["teacher"] + per["kd gradient"],
        "ppo": per["env"] + 4 * per["ppo gradient"],
    }
    steps = T * lanes
    return {
        "num_envs": num_envs,
        "seeds": num_seeds,
        "steps_per_second": {name: steps / per[name] for name in ("env", "distillation", "ppo")},
        "efficiency": {name: floor[name] / per[name] for name in floor},
        "milliseconds_an_update": {name: 1e3 * value for name, value in per.items()},
        "compile_seconds": {name: compile_seconds[name] for name in ("distillation", "ppo")},
    }


def machine() -> dict:
    """Where the figures come from."""
    versions = {name: version(name) for name in ("jax", "flax", "optax", "gymnax")}
    return {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def main(quick: bool) -> None:
    table = Table("envs", "seeds", "env only", "distillation", "efficiency", "ppo", "efficiency", "compile s (kd, ppo)")
    rows = []
    for num_envs, num_seeds in [(64, 1)] if quick else [(64, 1), (64, 16), (512, 1), (1024, 1), (2048, 1)]:
        rows.append(row(num_envs, num_seeds))
        r = rows[-1]
        rates = {name: f"{value / 1e3:,.0f}k" for name, value in r["steps_per_second"].items()}
        efficiency = {name: f"{value:.2f}" for name, value in r["efficiency"].items()}
        compiling = f"{r['compile_seconds']['distillation']:.1f}, {r['compile_seconds']['ppo']:.1f}"
        cells = rates["env"], rates["distillation"], efficiency["distillation"], rates["ppo"], efficiency["ppo"], compiling
        table.add_row(str(num_envs), str(num_seeds), *cells)
    Console(width=120).print(table)
    if not quick:
        rounded = json.loads(json.dumps(rows), parse_float=lambda x: float(np.format_float_positional(float(x), 4, fractional=False)))
        RESULTS.write_text(json.dumps({"machine": machine(), "unroll_length": T, "rows": rounded}, indent=1) + "\n")


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
