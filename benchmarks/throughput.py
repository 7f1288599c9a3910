"""Environment steps per second of raw stepping, PPO and distillation, against the floor of their parts, and compile seconds.

    python benchmarks/throughput.py [--quick]

Configuration: CartPole, 32 steps an update; PPO 4 epochs x 4 minibatches, MLP 64-64 with a critic apart; distillation 1 epoch x 4
minibatches, teacher 64-64, student 44, the student acts. floor = env-only scan + teacher forward on [T * B] + the gradients of all
minibatches, each timed alone and in as many lanes as there are seeds; efficiency = floor / engine. Beside it the engine's own stages alone,
act (with the teacher's forward) and learn, PPO with its rows fully shuffled, the banded convolution against `lax.conv`, Seaquest with
short lists, and what a teacher's KL and random network distillation add to PPO. All of one row alternate in one process; medians of 5. Writes results/throughput.json.
"""

import json
import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import protocol
from rich.console import Console
from rich.table import Table

import jaxkd
from jaxkd import methods, optimize, rewards, rollout
from jaxkd.base import Context
from jaxkd.behavior import student_acts
from jaxkd.cpu import grad
from jaxkd.losses import entropy, forward_kl, ppo_clip, td_mse
from jaxkd.networks.cnn import banded
from jaxkd.optimize import Optimization
from jaxkd.rollout import Needs, Rollout

T, MINIBATCHES, PPO_EPOCHS, REPEATS, ROUNDS = 32, 4, 4, 20, 5
KD_NEEDS = Needs(acting=False, next_obs=False, acting_next=False, teacher_next=False)
KD_OPTIMIZER = optax.adam(1e-3)
PPO_OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(2.5e-4, eps=1e-5))
PPO_NEEDS = Needs(next_obs=False, teacher=False, teacher_next=False)


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


def repeated(fn):
    """fn(x, key) -> x, REPEATS times for every lane: (xs, keys) -> xs, leaves [seeds, ...]."""
    return lambda x, keys: jax.vmap(lambda x, key: jax.lax.scan(lambda x, k: (fn(x, k), None), x, jax.random.split(key, REPEATS))[0])(
        x, keys
    )


def env_only(env):
    """A scan of T steps with given actions, stacking what a learner needs. x = (env_state, the last stacked rows, actions)."""

    def fn(x, key):
        def body(env_state, row):
            env_state, step = env.step(row[0], env_state, row[1])
            return env_state, (step.obs, step.reward, step.terminated, step.truncated)

        env_state, rows = jax.lax.scan(body, x[0], (jax.random.split(key, T), x[2]))
        return env_state, rows, x[2]

    return fn


def forward(policy):
    """One forward pass on [1, T * B]. x = (params, obs)."""

    def fn(x, key):
        out = policy.unroll(x[0], (), x[1], jnp.zeros(x[1].shape[:2]))[1]
        return x[0], x[1] + 1e-9 * out.policy.logits[..., :1]

    return fn


def gradient(policy, terms):
    """Gradients of the terms on each of the minibatches [minibatches, 1, N], each applied. x = (params, batch)."""

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
        params, _, opt_state, _ = optimize.learn(parts, x[0], {name: () for name in terms}, x[1], x[2], context)
        return params, opt_state, x[2]

    return fn


def measure(sources: dict) -> tuple[dict, dict]:
    """Seconds of running and of compiling each of {name: (function, args)}."""
    built = {name: (*compiled(fn, *args), args) for name, (fn, args) in sources.items()}
    seconds = alternate({name: (program, args) for name, (program, _, args) in built.items()})
    return seconds, {name: spent for name, (_, spent, _) in built.items()}


def train(algorithm):
    """The metrics of REPEATS updates for every key."""
    return lambda keys, *inputs: jax.vmap(lambda key: jaxkd.run(algorithm, key, REPEATS, *inputs)[1])(keys)


def terms():
    """The losses of distillation and of PPO."""
    return {"kl": forward_kl()}, {"policy": ppo_clip(), "value": td_mse(), "entropy": entropy()}


def arguments(env, big, small, key) -> dict:
    """What each part starts from, for one seed: real rollouts and fresh optimizers."""
    theirs, ours, ones = big.init(key), small.init(key), jnp.ones((T, env.num_envs))
    kd_start, ppo_start = (rollout.start(Rollout(env, policy, None, student_acts(), T, 1), key) for policy in (small, big))
    _, _, actors, batch = act(env, small, big, KD_NEEDS)((ours, theirs, kd_start, ()), key)
    _, _, ppo_actors, ppo_batch = act(env, big, None, PPO_NEEDS)((theirs, (), ppo_start, ()), key)
    full = batch._replace(weight=ones)
    ppo_full = ppo_batch._replace(weight=ones, advantage=batch.reward, target=ones, targets={"": ones})
    kd_terms, ppo_terms = (dict.fromkeys(names, ()) for names in terms())
    return {
        "env": env_only(env)((env.reset(key)[0], (), batch.action), key),
        "teacher forward": (theirs, batch.obs.reshape(1, -1, 4)),
        "kd gradient": (ours, minibatches(full)),
        "ppo gradient": (theirs, minibatches(ppo_full, PPO_EPOCHS)),
        "kd act": (ours, theirs, actors, batch),
        "kd learn": (ours, KD_OPTIMIZER.init((ours, kd_terms)), full),
        "ppo act": (theirs, (), ppo_actors, ppo_batch),
        "ppo learn": (theirs, PPO_OPTIMIZER.init((theirs, ppo_terms)), ppo_full),
    }


def parts(env, num_seeds: int) -> dict:
    """What is timed: {name: (function, args)}; the parts of the floor, the engine's stages, and the engine."""
    big, small = jaxkd.networks.mlp(env, (64, 64), separate=True), jaxkd.networks.mlp(env, (44,))
    kd_terms, ppo_terms = terms()
    functions = {
        "env": env_only(env),
        "teacher forward": forward(big),
        "kd gradient": gradient(small, list(kd_terms.values())),
        "ppo gradient": gradient(big, list(ppo_terms.values())),
        "kd act": act(env, small, big, KD_NEEDS),
        "kd learn": learn(small, kd_terms, KD_OPTIMIZER, 1),
        "ppo act": act(env, big, None, PPO_NEEDS),
        "ppo learn": learn(big, ppo_terms, PPO_OPTIMIZER, PPO_EPOCHS),
    }
    keys = jaxkd.seeds(0, num_seeds)
    args = jax.jit(jax.vmap(lambda key: arguments(env, big, small, key)))(keys)
    sources = {name: (repeated(fn), (args[name], keys)) for name, fn in functions.items()}
    kd = jaxkd.distill(env, small, big, losses=kd_terms, optimizer=KD_OPTIMIZER)
    ppo, mixed = (jaxkd.ppo(env, big, optimizer=PPO_OPTIMIZER, shuffle=shuffle) for shuffle in ("env", "full"))
    whole = {
        "distillation": (train(kd), (keys, big.init(keys[0]))),
        "ppo": (train(ppo), (keys,)),
        "ppo, full shuffle": (train(mixed), (keys,)),
    }
    return sources | whole


def minibatches(batch, epochs: int = 1):
    """The rows of a batch [T, B] as [epochs * MINIBATCHES, 1, N]."""
    return jax.tree.map(lambda x: jnp.tile(x.reshape((MINIBATCHES, 1, -1, *x.shape[2:])), (epochs,) + (1,) * (x.ndim)), batch)


def row(num_envs: int, num_seeds: int) -> dict:
    """One configuration: figures of the engine, of its stages and of its floor."""
    seconds, compile_seconds = measure(parts(jaxkd.envs.make("CartPole-v1", num_envs), num_seeds))
    per = {name: value / REPEATS for name, value in seconds.items()}
    floor = {"distillation": per["env"] + per["teacher forward"] + per["kd gradient"], "ppo": per["env"] + per["ppo gradient"]}
    steps = T * num_envs * num_seeds
    return {
        "num_envs": num_envs,
        "seeds": num_seeds,
        "steps_per_second": {name: steps / per[name] for name in ("env", "distillation", "ppo")},
        "efficiency": {name: floor[name] / per[name] for name in floor},
        "milliseconds_an_update": {name: 1e3 * value for name, value in per.items()},
        "compile_seconds": {name: compile_seconds[name] for name in ("distillation", "ppo")},
    }


def convolution() -> float:
    """How much faster the banded 3x3 convolution is than `lax.conv`: forward and gradient of a minibatch of MinAtar's network, a ratio."""
    x, kernel = jnp.ones((1024, 10, 10, 4)), jnp.ones((3, 3, 4, 16)) / 36
    plain = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def trained(convolve):
        step = lambda kernel, _: (kernel - 1e-9 * jax.grad(lambda k: jnp.sum(jnp.square(convolve(x, k))))(kernel), None)
        return lambda kernel: jax.lax.scan(step, kernel, None, REPEATS)[0]

    seconds, _ = measure({name: (trained(fn), (kernel,)) for name, fn in {"banded": banded, "plain": plain}.items()})
    return seconds["plain"] / seconds["banded"]


def seaquest() -> float:
    """How much faster Seaquest steps with room for 32 entities of each kind than with 100: a ratio."""
    sources, key = {}, jaxkd.seeds(0, 1)
    for name, given in {"100": {}, "32": {"entities": 32}}.items():
        env = jaxkd.envs.make("Seaquest-MinAtar", 128, **given)
        start = jax.tree.map(lambda x: x[None], (env.reset(key[0])[0], (), jnp.ones((T, 128), jnp.int32)))
        first = jax.jit(jax.vmap(env_only(env)))((start[0], (), start[2]), key)  # what the scan stacks
        sources[name] = (lambda x, keys, env=env: jax.vmap(env_only(env))(x, keys), (first, key))
    seconds, _ = measure(sources)
    return seconds["100"] / seconds["32"]


def extras() -> dict[str, float]:
    """What is added to PPO's seconds, as a share of them: a teacher's KL, and a bonus whose predictor learns from a quarter of the rows."""
    env = jaxkd.envs.make("CartPole-v1", 64)
    big, curious = (jaxkd.networks.mlp(env, (64, 64), separate=True, extra=extra) for extra in ((), ("bonus",)))
    key, given = jaxkd.seeds(0, 1), dict(optimizer=PPO_OPTIMIZER)
    predictor = lambda width: rewards.Predictor(hidden=(width, width), features=width, batch_size=T * 64 // 8, num_minibatches=2)
    rnd = lambda width: methods.exploration(env, curious, bonus=rewards.rnd(predictor=predictor(width), stream="bonus"), **given)
    teacher = (jaxkd.ppo(env, big, big, losses={"kl": forward_kl()}, **given), (key, big.init(key[0])))
    sources = {"ppo": (jaxkd.ppo(env, big, **given), (key,)), "kl 64": teacher}
    sources |= {f"rnd {width}": (rnd(width), (key,)) for width in (64, 512)}
    seconds, _ = measure({name: (train(algorithm), args) for name, (algorithm, args) in sources.items()})
    return {name: seconds[name] / seconds["ppo"] - 1 for name in sources if name != "ppo"}


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
    ratio = convolution()
    print(f"banded convolution: {ratio:.1f} times as fast as lax.conv")
    room = seaquest()
    print(f"Seaquest with entities=32: {room:.1f} times as fast")
    added = extras()
    print("added to PPO's time: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in added.items()))
    if not quick:
        rounded = json.loads(json.dumps(rows), parse_float=lambda x: float(np.format_float_positional(float(x), 4, fractional=False)))
        protocol.write(
            "throughput",
            {"unroll_length": T, "banded_convolution": ratio, "seaquest_entities": room, "added_to_ppo": added, "rows": rounded},
        )


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
