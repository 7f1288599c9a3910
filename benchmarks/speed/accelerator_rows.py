"""How fast the accelerator is: its ceilings, both algorithms by environments and seeds, V3, V5."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from programs import (
    COMPILE_SECONDS,
    FULL,
    LATE,
    ROUNDS,
    ROW_SECONDS,
    TOO_LARGE,
    Entries,
    Size,
    T,
    build,
    measured,
    milliseconds,
    side_by_side,
    work,
)


def rate(fn: Callable, *args: Any, times: int = 10) -> float:
    """Seconds of a call, the median of the rounds."""
    import jax

    program = jax.jit(fn).lower(*args).compile()
    jax.block_until_ready(program(*args))
    spent = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(times):
            out = program(*args)
        jax.block_until_ready(out)
        spent.append((time.perf_counter() - began) / times)
    return statistics.median(spent)


def device(size: Size) -> Entries:
    """What the machine is, and its ceilings: a matrix product by precision, and a copy."""
    import jax
    import jax.numpy as jnp

    n = size.product
    x = jax.random.normal(jax.random.key(0), (n, n))

    for name, dtype, precision in (
        ("float32", jnp.float32, "highest"),
        ("tf32", jnp.float32, "default"),
        ("bfloat16", jnp.bfloat16, "default"),
    ):
        with jax.default_matmul_precision(precision):
            seconds = rate(jnp.matmul, x.astype(dtype), x.astype(dtype))
        yield {"what": f"matrix product, {name}", "tflops": 2e-12 * n**3 / seconds}
    wide = jnp.tile(x, (4, 1))
    yield {"what": "copy", "gigabytes_per_second": 2e-9 * wide.nbytes / rate(lambda x: -x, wide)}
    small = jnp.ones(128)
    yield {
        "what": "one small kernel, called",
        "microseconds": 1e6 * rate(lambda x: x + 1, small, times=1000),
    }
    looped = rate(lambda x: jax.lax.fori_loop(0, 1000, lambda i, x: jnp.cumsum(x) * 0.5, x), small)
    yield {"what": "one small kernel, in a loop of 1000", "microseconds": 1e3 * looped}


def grid(kind: str, game: str) -> Callable[[Size], Entries]:
    """Steps per second by environments and seeds.

    What matters most is compiled and run first: the minute leaves out the others.
    """

    def row(size: Size) -> Entries:
        began, algorithms = time.perf_counter(), {}
        points = [(envs, n) for n in size.seeds for envs in size.envs]
        points.sort(key=lambda point: (point[0] not in (size.envs[1], size.envs[-1]), point[1]))
        fitting = [(envs, n) for envs, n in points if envs * n <= size.most[game]]

        def source(envs, n):
            if envs not in algorithms:
                algorithms[envs] = work(kind, game, envs)
            algorithm, inputs = algorithms[envs]
            return build(algorithm, envs, n, inputs, updates=1 if envs * n > 2**17 else 4)

        sources = {point: lambda point=point: source(*point) for point in fitting}
        programs = side_by_side(sources, began + COMPILE_SECONDS)
        for envs, n in points:
            program = programs.pop((envs, n), TOO_LARGE)
            late = time.perf_counter() - began > ROW_SECONDS - 5
            yield {"num_envs": envs, "seeds": n} | measured(LATE if late else program, size)

    row.__doc__ = f"{kind} of {game} by environments and seeds"
    return row


def seeds(size: Size) -> Entries:
    """32 seeds in one call against one (V3), and whether a seed is the same in both."""
    n = 32 if size is FULL else 2
    works = {
        (kind, envs): work(kind, "CartPole-v1", envs)
        for kind in ("distillation", "ppo")
        for envs in (size.few, size.envs[0])
    }
    points = {(*name, number): (*made, number) for name, made in works.items() for number in (1, n)}
    sources = {
        name: lambda p=p, name=name: build(p[0], name[1], p[2], p[1]) for name, p in points.items()
    }
    programs = side_by_side(sources, time.perf_counter() + COMPILE_SECONDS)
    for kind, envs in works:
        one, many = (measured(programs[kind, envs, number], size) for number in (1, n))
        entry = {"what": kind, "num_envs": envs, "seeds": n}
        if "skipped" in one or "skipped" in many:
            yield entry | {"skipped": one.get("skipped", many.get("skipped"))}
            continue
        times = many["milliseconds_an_update"] / one["milliseconds_an_update"]
        yield entry | {
            "one_ms": one["milliseconds_an_update"],
            "all_ms": many["milliseconds_an_update"],
            "times": times,
        }
    yield from among_others(works, n)


def among_others(works: dict, n: int) -> Entries:
    """Whether a seed is the same alone and as a lane among n."""
    import jax
    import numpy as np

    import jaxkd

    keys = jaxkd.seeds(0, n)
    with jax.default_matmul_precision("highest"):
        for (kind, envs), (algorithm, inputs) in works.items():
            alone = jaxkd.run(algorithm, keys[n - 1], 1, *inputs, deterministic=True)[0].params
            among = jaxkd.run(jaxkd.lanes(algorithm), keys, 1, *inputs, deterministic=True)[
                0
            ].params
            apart = [
                np.abs(np.asarray(a) - np.asarray(b)[-1]).max()
                for a, b in zip(*map(jax.tree.leaves, (alone, among)), strict=True)
            ]
            yield {
                "what": f"{kind}, {envs} environments: a seed alone and among {n}",
                "largest_difference": float(max(apart)),
            }


def additions(envs: int) -> dict[str, tuple]:
    """PPO, with a teacher's KL, and with RND: {name: (algorithm, inputs)}."""
    import jax

    import jaxkd
    from jaxkd import methods, rewards

    env = jaxkd.envs.make("CartPole-v1", envs)
    big, curious = (
        jaxkd.networks.mlp(env, (64, 64), separate=True, extra=extra) for extra in ((), ("bonus",))
    )
    given = dict(learning_rate=2.5e-4, unroll_length=T)

    def rnd(width):
        predictor = rewards.Predictor(
            hidden=(width, width), features=width, batch_size=T * envs // 8, num_minibatches=2
        )
        bonus = rewards.rnd(predictor=predictor, stream="bonus")
        return methods.exploration(env, curious, bonus=bonus, **given)

    taught = jaxkd.ppo(env, big, big, losses={"kl": jaxkd.losses.forward_kl()}, **given)
    return {
        "ppo": (jaxkd.ppo(env, big, **given), ()),
        "kl 64": (taught, (big.init(jax.random.key(1)),)),
    } | {f"rnd {width}": (rnd(width), ()) for width in (64, 512)}


def added(size: Size) -> Entries:
    """What a teacher's KL and random network distillation add to PPO's time (V5)."""
    for envs in (size.few, size.envs[1]):
        sources = {
            name: lambda made=made, envs=envs: build(made[0], envs, 1, made[1])
            for name, made in additions(envs).items()
        }
        programs = side_by_side(sources, time.perf_counter() + ROW_SECONDS / 2)
        found = {name: measured(program, size) for name, program in programs.items()}
        for name, figures in found.items():
            share = milliseconds(figures) / milliseconds(found["ppo"])
            yield {"what": name, "num_envs": envs, "added": share - 1} | figures


RAW = (
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "Breakout-MinAtar",
    "Asterix-MinAtar",
    "SpaceInvaders-MinAtar",
    "Freeway-MinAtar",
)


def stepping(game: str, envs: int) -> Any:
    """T steps of an environment under random actions, as an algorithm."""
    import jax
    import jax.numpy as jnp

    import jaxkd

    env = jaxkd.envs.make(game, envs)

    def action(key):
        if hasattr(env.action_space, "n"):
            return jax.random.randint(key, (envs,), 0, env.action_space.n)
        return jax.random.uniform(key, (envs, *env.action_space.shape), minval=-1.0)

    def one(state, key):
        key_act, key_env = jax.random.split(key)
        env_state, step = env.step(key_env, state[0], action(key_act))
        return (env_state, state[1] + step.reward), None

    def init(key):
        return {"env": (env.reset(key)[0], jnp.zeros(envs)), "key": key}

    def step(state):
        key, own = jax.random.split(state["key"])
        after = jax.lax.scan(one, state["env"], jax.random.split(own, T))[0]
        return {"env": after, "key": key}, {}

    return jaxkd.Algorithm(init, step)


def raw(size: Size) -> Entries:
    """Environments alone, random actions."""
    points = [(game, envs) for envs in sorted({size.envs[1], size.envs[-1]}) for game in RAW]
    sources = {point: lambda point=point: build(stepping(*point), point[1], 1) for point in points}
    programs = side_by_side(sources, time.perf_counter() + COMPILE_SECONDS)
    for game, envs in points:
        yield {"env": game, "num_envs": envs} | measured(programs[game, envs], size)
