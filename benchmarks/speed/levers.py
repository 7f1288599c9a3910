"""What could still make the engine faster, each lever alone against the engine as it is: ratios
above 1 are a gain.

    python benchmarks/speed/levers.py

CartPole, 64 and 512 environments and 16 seeds of 64, distillation and PPO at the configuration of
throughput.py, alternating in one process, medians of its rounds. What the engine has, taken away (a
ratio below 1 is what it saves): `jax.grad` instead of `cpu.grad`, threefry as JAX compiles it
instead of `cpu.unrolled`, beginnings drawn in every step instead of `cpu.where_any`. What it has
not: rbg keys (`jax.random.key(0, impl="rbg")`), one uniform number an action instead of one Gumbel
number a logit, no random numbers in acting at all (greedy: the bound of any such lever), the
rollout's scan unrolled twice, beginnings of episodes from a pool of 8 (`envs.make(...,
reset_pool=8)`: an option, off by itself), the optimizer on one flat vector (`optax.flatten`),
advantages by an associative scan (PPO only). What is learnt from it is in NOTES.md. Writes
results/speed/levers.json.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Given, __doc__, __file__)

import contextlib
from functools import partial
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import throughput
from throughput import KD_OPTIMIZER, PPO_OPTIMIZER, measure, terms, train

import jaxkd
from benchmarks import protocol
from jaxkd import envs, optimize, returns, rollout
from jaxkd.distributions import Categorical


def inverted(self, key):
    """One uniform number a row, by the inverse of the cumulative probabilities."""
    share = jnp.cumsum(jax.nn.softmax(self.logits), axis=-1)[..., :-1]
    return jnp.sum(jax.random.uniform(key, share.shape[:-1] + (1,)) >= share, axis=-1).astype(
        jnp.int32
    )


@contextlib.contextmanager
def unrolled(times: int):
    """The rollout's scan, which alone has a body called so of T steps."""
    scan = jax.lax.scan

    def longer(body, *args, **keywords):
        mine = body.__module__ == "jaxkd.rollout" and body.__name__ == "body"
        return scan(body, *args, **keywords | ({"unroll": times} if mine else {}))

    with mock.patch.object(jax.lax, "scan", longer):
        yield


@contextlib.contextmanager
def rolled():
    """Random numbers in acting as JAX compiles them."""
    with (
        mock.patch.object(rollout, "unrolled", lambda key: key),
        mock.patch.object(envs.batch, "unrolled", lambda key: key),
    ):
        yield


@contextlib.contextmanager
def always():
    """Beginnings of episodes computed in every step."""
    computed = lambda wanted, then, otherwise, *args: then(*args)
    with mock.patch.object(envs.batch, "where_any", computed):
        yield


def associated(x, decay):
    """`returns.discounted_sum` in parallel."""
    join = lambda later, row: (row[0] * later[0], row[1] + row[0] * later[1])
    return jax.lax.associative_scan(join, (decay, x), reverse=True)[1]


LEVERS = {
    "as it is": contextlib.nullcontext,
    "jax.grad": lambda: mock.patch.object(optimize, "grad", jax.grad),
    "jax's threefry": rolled,
    "always reset": always,
    "rbg": contextlib.nullcontext,
    "inverted": lambda: mock.patch.object(Categorical, "sample", inverted),
    "greedy": lambda: mock.patch.object(Categorical, "sample", lambda self, key: self.mode()),
    "unroll 2": lambda: unrolled(2),
    "reset pool": contextlib.nullcontext,
    "flat optimizer": contextlib.nullcontext,
    "associative scan": lambda: mock.patch.object(returns, "discounted_sum", associated),
}


def within(change, function):
    """The function, traced with the change in place."""

    def changed(*args):
        with change():
            return function(*args)

    return changed


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    points: tuple[tuple[int, int], ...] = ((64, 1), (64, 16), (512, 1))  # environments, seeds
    works: tuple[str, ...] = ("distillation", "ppo")
    levers: tuple[str, ...] = tuple(LEVERS)
    repeats: int = throughput.REPEATS
    rounds: int = throughput.ROUNDS


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(points=((64, 1),)),
    "tiny": Sizes(((4, 1),), ("ppo",), ("as it is", "always reset", "reset pool"), 1, 1),
}


def one_seed(algorithm, times: int):
    """The metrics and the last state of so many updates by a plain `run`."""
    return lambda key, *inputs: jaxkd.run(algorithm, key, times, *inputs)


def row(size: Sizes, num_envs: int, num_seeds: int) -> dict[str, dict[str, float]]:
    usual = jaxkd.envs.make("CartPole-v1", num_envs)
    big = jaxkd.networks.mlp(usual, (64, 64), separate=True)
    small = jaxkd.networks.mlp(usual, (44,))
    sources = {}
    for name in size.levers:
        change = LEVERS[name]
        env = (
            jaxkd.envs.make("CartPole-v1", num_envs, reset_pool=8)
            if name == "reset pool"
            else usual
        )
        key = jax.random.key(0, impl="rbg" if name == "rbg" else None)
        keys, whole = (
            (key, one_seed) if num_seeds == 1 else (jax.random.split(key, num_seeds), train)
        )
        packed = optax.flatten if name == "flat optimizer" else lambda optimizer: optimizer
        kd = jaxkd.distill(env, small, big, losses=terms()[0], optimizer=packed(KD_OPTIMIZER))
        ppo = jaxkd.ppo(env, big, optimizer=packed(PPO_OPTIMIZER))
        params = big.init(jax.random.key(1))
        works = {"distillation": (kd, (keys, params)), "ppo": (ppo, (keys,))}
        for work in size.works:
            algorithm, args = works[work]
            sources[f"{work}, {name}"] = (within(change, whole(algorithm, size.repeats)), args)
    seconds, compiling = measure(sources, size.rounds)
    found = {}
    for name in sources:
        plain = name.split(",")[0] + ", as it is"
        steps = throughput.T * num_envs * num_seeds * size.repeats / np.median(seconds[name])
        found[name] = {
            "gain": throughput.ratio(seconds[plain], seconds[name]),
            "steps_per_second": steps,
            "compile_seconds": compiling[name],
        }
        print(
            f"{num_envs} envs, {num_seeds} seeds, {name}: x {found[name]['gain']:.2f}, "
            f"{steps / 1e3:,.0f}k steps/s, compile {compiling[name]:.1f} s",
            flush=True,
        )
    return found


def main(given: frame.Given) -> None:
    size = frame.sized(given, SIZES)
    runs = {f"{n} envs, {seeds} seeds": partial(row, size, n, seeds) for n, seeds in size.points}
    found, _ = protocol.arms("levers", runs, lambda _: size)
    protocol.write("levers", {"rows": found})
    protocol.forget("levers")


if __name__ == "__main__":
    main(GIVEN)
