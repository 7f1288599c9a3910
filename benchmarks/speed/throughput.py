"""Environment steps per second of raw stepping, PPO and distillation, against the floor of their
parts, and compile seconds.

    python benchmarks/speed/throughput.py

CartPole with 64 environments, one seed and 16, and with 1024; Acrobot, Breakout (MinAtar's
network), Asterix (likewise) and Pendulum with 64. 32 steps an update; PPO 4 epochs x 4 minibatches,
MLP 64-64 with a critic apart; distillation 1 epoch x 4 minibatches, teacher 64-64, student 44
(MinAtar: 1/15 of the teacher), the student acts. floor = env-only scan + teacher forward on [T * B]
+ the gradients of all minibatches, each timed alone and in as many lanes as there are seeds;
efficiency = floor / engine. The floor leaves out that somebody acts: "acting too" counts the
forward pass of who does. Beside it the engine's own stages alone, act (with the teacher's forward)
and learn, PPO with its rows fully shuffled, the banded convolution against `lax.conv`, Seaquest
with short lists, and what a teacher's KL and random network distillation add to PPO. All of one row
alternate in one process; a ratio is the median of the rounds' own ratios, because these machines'
speed wanders. Writes results/speed/throughput.json and .png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Given, __doc__, __file__)

import json
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import jaxkd
from benchmarks import protocol
from jaxkd import optimize, rollout
from jaxkd.base import Context
from jaxkd.behavior import student_acts
from jaxkd.cpu import grad
from jaxkd.losses import entropy, forward_kl, ppo_clip, td_mse
from jaxkd.optimize import Optimization
from jaxkd.rollout import Needs, Rollout

T, MINIBATCHES, PPO_EPOCHS, REPEATS, ROUNDS = 32, 4, 4, 20, 7
POINTS = [("CartPole-v1", 64, 1), ("CartPole-v1", 64, 16), ("CartPole-v1", 1024, 1)]
POINTS += [
    (name, 64, 1) for name in ("Acrobot-v1", "Breakout-MinAtar", "Asterix-MinAtar", "Pendulum-v1")
]
FLOOR = {"distillation": ("env", "teacher forward", "kd gradient"), "ppo": ("env", "ppo gradient")}
ACTOR = {"distillation": "student forward", "ppo": "ppo forward"}
KD_NEEDS = Needs(acting=False, next_obs=False, acting_next=False, teacher_next=False)
KD_OPTIMIZER = optax.adam(1e-3)
PPO_OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(2.5e-4, eps=1e-5))
PPO_NEEDS = Needs(next_obs=False, teacher=False, teacher_next=False)


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    points: tuple[tuple[str, int, int], ...] = tuple(POINTS)  # environment, how many, seeds
    repeats: int = REPEATS  # of an update of 64 environments, in one measurement
    rounds: int = ROUNDS
    aside: tuple[str, ...] = ("banded_convolution", "seaquest_entities", "added_to_ppo")


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(points=tuple(POINTS[:2])),
    # Seaquest compiles for as long as all else together.
    "tiny": Sizes((("CartPole-v1", 4, 1),), 1, 1, ("banded_convolution",)),
}


def compiled(fn, *args):
    """The compiled function and the seconds that tracing and compiling it took."""
    began = time.perf_counter()
    program = jax.jit(fn).lower(*args).compile()
    return program, time.perf_counter() - began


def alternate(programs: dict, rounds: int) -> dict[str, np.ndarray]:
    """Seconds [rounds] of each program, {name: (program, args)}, run in turns."""
    for program, args in programs.values():
        jax.block_until_ready(program(*args))
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (program, args) in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*args))
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def repeated(fn, times: int):
    """fn(x, key) -> x, so many times for every lane: (xs, keys) -> xs, leaves [seeds, ...]."""

    def lane(x, key):
        return jax.lax.scan(lambda x, k: (fn(x, k), None), x, jax.random.split(key, times))[0]

    return jax.vmap(lane)


def env_only(env):
    """A scan of T steps with given actions, stacking what a learner needs. x = (env_state, the last
    stacked rows, actions).
    """

    def fn(x, key):
        def body(env_state, row):
            env_state, step = env.step(row[0], env_state, row[1])
            return env_state, (step.obs, step.reward, step.terminated, step.truncated)

        env_state, rows = jax.lax.scan(body, x[0], (jax.random.split(key, T), x[2]))
        return env_state, rows, x[2]

    return fn


def forward(policy, value: bool = False):
    """One forward pass on [1, T * B], of the policy alone or with its value. x = (params, obs); the
    next pass waits for this one.
    """

    def fn(x, key):
        out = policy.unroll(x[0], (), x[1], jnp.zeros(x[1].shape[:2]))[1]
        used = sum(leaf.sum() for leaf in jax.tree.leaves((out.policy, out.value if value else ())))
        return jax.tree.map(lambda p: p - 1e-9 * used, x[0]), x[1]

    return fn


def gradient(policy, terms):
    """Gradients of the terms on each of the minibatches [minibatches, 1, N], each applied. x =
    (params, batch).
    """

    def fn(x, key):
        def loss(params, batch):
            out = policy.unroll(params, (), batch.obs, batch.reset)[1]
            return sum(term.loss((), out, batch, None).mean() for term in terms)

        def one(params, batch):
            return jax.tree.map(lambda p, g: p - 1e-9 * g, params, grad(loss)(params, batch)), None

        return jax.lax.scan(one, x[0], x[1])[0], x[1]

    return fn


def act(env, student, teacher, needs):
    """Stage 1 alone. x = (params, teacher params, actors, the last batch)."""
    parts = Rollout(env, student, teacher, student_acts(), T, 1)

    def fn(x, key):
        context = Context(jnp.int32(0), jnp.float32(0), (), key)
        actors, batch, _ = rollout.act(parts, needs, x[0], x[1], x[2], context)
        return x[0], x[1], actors, batch

    return fn


def learn(policy, terms, optimizer, num_epochs):
    """Stage 4 alone. x = (params, optimizer state, batch [T, B])."""
    parts = Optimization(policy, terms, optimizer, 1, num_epochs, MINIBATCHES, "env")

    def fn(x, key):
        context = Context(jnp.int32(0), jnp.float32(0), (), key)
        params, _, opt_state, _ = optimize.learn(
            parts, x[0], {name: () for name in terms}, x[1], x[2], context
        )
        return params, opt_state, x[2]

    return fn


def measure(sources: dict, rounds: int = ROUNDS) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Seconds of running [rounds] and of compiling each of {name: (function, args)}."""
    built = {name: (*compiled(fn, *args), args) for name, (fn, args) in sources.items()}
    programs = {name: (program, args) for name, (program, _, args) in built.items()}
    seconds = alternate(programs, rounds)
    return seconds, {name: spent for name, (_, spent, _) in built.items()}


def ratio(above: np.ndarray, below: np.ndarray) -> float:
    """The median over the rounds of their ratio."""
    return float(np.median(above / below))


def train(algorithm, times: int = REPEATS):
    """The metrics and the last states of so many updates for every key: all of both is computed."""
    return lambda keys, *inputs: jax.vmap(lambda key: jaxkd.run(algorithm, key, times, *inputs))(
        keys
    )


def networks_for(env) -> tuple:
    """(teacher, student of 1/15)."""
    if env.name.endswith("MinAtar"):
        return jaxkd.networks.cnn(env), jaxkd.networks.cnn(env, (4,), (32,))
    return jaxkd.networks.mlp(env, (64, 64), separate=True), jaxkd.networks.mlp(env, (44,))


def terms():
    """The losses of distillation and of PPO."""
    return {"kl": forward_kl()}, {"policy": ppo_clip(), "value": td_mse(), "entropy": entropy()}


def arguments(env, big, small, key) -> dict:
    """What each part starts from, for one seed: real rollouts and fresh optimizers."""
    theirs, ours, ones = big.init(key), small.init(key), jnp.ones((T, env.num_envs))
    kd_start, ppo_start = (
        rollout.start(Rollout(env, policy, None, student_acts(), T, 1), key)
        for policy in (small, big)
    )
    _, _, actors, batch = act(env, small, big, KD_NEEDS)((ours, theirs, kd_start, ()), key)
    _, _, ppo_actors, ppo_batch = act(env, big, None, PPO_NEEDS)((theirs, (), ppo_start, ()), key)
    full = batch._replace(weight=ones)
    ppo_full = ppo_batch._replace(
        weight=ones, advantage=batch.reward, target=ones, targets={"": ones}
    )
    kd_terms, ppo_terms = (dict.fromkeys(names, ()) for names in terms())
    rows = batch.obs.reshape((1, -1, *batch.obs.shape[2:]))
    return {
        "env": env_only(env)((env.reset(key)[0], (), batch.action), key),
        "teacher forward": (theirs, rows),
        "student forward": (ours, rows),
        "ppo forward": (theirs, rows),
        "kd gradient": (ours, minibatches(full)),
        "ppo gradient": (theirs, minibatches(ppo_full, PPO_EPOCHS)),
        "kd act": (ours, theirs, actors, batch),
        "kd learn": (ours, KD_OPTIMIZER.init((ours, kd_terms)), full),
        "ppo act": (theirs, (), ppo_actors, ppo_batch),
        "ppo learn": (theirs, PPO_OPTIMIZER.init((theirs, ppo_terms)), ppo_full),
    }


def parts(env, num_seeds: int, times: int = REPEATS) -> dict:
    """What is timed: {name: (function, args)}; the parts of the floor, the engine's stages, and the
    engine.
    """
    big, small = networks_for(env)
    kd_terms, ppo_terms = terms()
    functions = {
        "env": env_only(env),
        "teacher forward": forward(big),
        "student forward": forward(small),
        "ppo forward": forward(big, value=True),
        "kd gradient": gradient(small, list(kd_terms.values())),
        "ppo gradient": gradient(big, list(ppo_terms.values())),
        "kd act": act(env, small, big, KD_NEEDS),
        "kd learn": learn(small, kd_terms, KD_OPTIMIZER, 1),
        "ppo act": act(env, big, None, PPO_NEEDS),
        "ppo learn": learn(big, ppo_terms, PPO_OPTIMIZER, PPO_EPOCHS),
    }
    keys = jaxkd.seeds(0, num_seeds)
    args = jax.jit(jax.vmap(lambda key: arguments(env, big, small, key)))(keys)
    sources = {name: (repeated(fn, times), (args[name], keys)) for name, fn in functions.items()}
    kd = jaxkd.distill(env, small, big, losses=kd_terms, optimizer=KD_OPTIMIZER)
    ppo, mixed = (
        jaxkd.ppo(env, big, optimizer=PPO_OPTIMIZER, shuffle=shuffle) for shuffle in ("env", "full")
    )
    whole = {
        "distillation": (train(kd, times), (keys, big.init(keys[0]))),
        "ppo": (train(ppo, times), (keys,)),
        "ppo, full shuffle": (train(mixed, times), (keys,)),
    }
    return sources | whole


def minibatches(batch, epochs: int = 1):
    """The rows of a batch [T, B] as [epochs * MINIBATCHES, 1, N]."""
    return jax.tree.map(
        lambda x: jnp.tile(
            x.reshape((MINIBATCHES, 1, -1, *x.shape[2:])), (epochs,) + (1,) * (x.ndim)
        ),
        batch,
    )


def row(size: Sizes, name: str, num_envs: int, num_seeds: int) -> dict:
    """One configuration: figures of the engine, of its stages and of its floor."""
    grids = 10 if name.endswith("MinAtar") else 1  # a convolution takes so many times longer
    times = max(2, size.repeats * 64 // (num_envs * num_seeds * grids))
    sources = parts(jaxkd.envs.make(name, num_envs), num_seeds, times)
    seconds, compile_seconds = measure(sources, size.rounds)
    per = {part: 1e3 * np.median(value) / times for part, value in seconds.items()}
    floor = {engine: sum(seconds[part] for part in parts) for engine, parts in FLOOR.items()}
    return {
        "env": name,
        "num_envs": num_envs,
        "seeds": num_seeds,
        "steps_per_second": {
            part: 1e3 * T * num_envs * num_seeds / per[part] for part in ("env", *FLOOR)
        },
        "efficiency": {engine: ratio(floor[engine], seconds[engine]) for engine in FLOOR},
        "acting_too": {
            engine: ratio(floor[engine] + seconds[ACTOR[engine]], seconds[engine])
            for engine in FLOOR
        },
        "full_shuffle": ratio(seconds["ppo, full shuffle"], seconds["ppo"]),
        "milliseconds_an_update": per,
        "compile_seconds": {engine: compile_seconds[engine] for engine in FLOOR},
    }


def draw(rows: list[dict]):
    """Above the shares of the floor, below the speed; a row each."""
    figure, axes = plt.subplots(
        2, 1, figsize=(1.2 * len(rows) + 2, 5), sharex=True, layout="constrained"
    )
    for shift, engine, colour in ((-0.2, "distillation", "tab:blue"), (0.2, "ppo", "tab:orange")):
        places = [i + shift for i in range(len(rows))]
        axes[0].bar(
            places, [r["efficiency"][engine] for r in rows], 0.38, color=colour, label=engine
        )
        axes[0].plot(
            places,
            [r["acting_too"][engine] for r in rows],
            "k_",
            ms=14,
            label="acting too" if shift > 0 else None,
        )
        axes[1].bar(places, [r["steps_per_second"][engine] for r in rows], 0.38, color=colour)
    axes[1].plot([r["steps_per_second"]["env"] for r in rows], "kx", label="environment only")
    axes[0].axhline(0.85, color="gray", ls=":", lw=0.8)
    axes[0].set(ylabel="floor / engine")
    axes[1].set(ylabel="steps per second", yscale="log", xticks=range(len(rows)))
    axes[1].set_xticklabels(
        [f"{r['env'].split('-')[0]}\n{r['num_envs']} x {r['seeds']}" for r in rows], fontsize=8
    )
    for axis in axes:
        axis.legend(fontsize=7, ncols=3)
    return figure


COLUMNS = ("env", "envs x seeds", "env only", "distillation", "efficiency", "acting too", "ppo")


def table(rows: list[dict]) -> Table:
    """A line a configuration."""
    shown = Table(*COLUMNS, "efficiency", "acting too", "compile s")
    for r in rows:
        rates = {part: f"{value / 1e3:,.0f}k" for part, value in r["steps_per_second"].items()}
        cells = [r["env"].split("-")[0], f"{r['num_envs']} x {r['seeds']}", rates["env"]]
        for engine in FLOOR:
            shares = [f"{r[kind][engine]:.2f}" for kind in ("efficiency", "acting_too")]
            cells += [rates[engine], *shares]
        shown.add_row(*cells, ", ".join(f"{x:.1f}" for x in r["compile_seconds"].values()))
    return shown


def main(given: frame.Given) -> None:
    import throughput_extras as extras  # which imports this file

    size = frame.sized(given, SIZES)
    runs: dict = {
        f"{name}, {n} x {seeds}": partial(row, size, name, n, seeds)
        for name, n, seeds in size.points
    }
    aside = {name: partial(extras.MEASURES[name], size) for name in size.aside}
    found, _ = protocol.arms("throughput", runs | aside, lambda _: size)
    rows = [found[name] for name in runs]
    Console(width=140).print(table(rows))
    made: dict = {"unroll_length": T, "rounds": size.rounds} | {name: found[name] for name in aside}
    print(*(f"{name}: {found[name]}" for name in aside), sep="\n")
    rounded = json.loads(
        json.dumps(made | {"rows": rows}),
        parse_float=lambda x: float(np.format_float_positional(float(x), 4, fractional=False)),
    )
    protocol.write("throughput", rounded, draw(rows))
    protocol.forget("throughput")


if __name__ == "__main__":
    main(GIVEN)
