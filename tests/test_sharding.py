"""Seeds and environments over 8 virtual devices, in one process and in two: as on one device."""

import functools
import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import behavior, losses, memory, networks, rewards, sharding

HERE = Path(__file__).parent


def children(code: str, number: int = 1) -> list[dict]:
    """What `number` fresh processes print as JSON in their last line.

    `code` may use `index` and `port`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    start = lambda i: f"index, port = {i}, {port}; from test_sharding import *; {code}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", start(i)],
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(number)
    ]
    ended = [(process.communicate(timeout=400), process.returncode) for process in running]
    for (_, err), status in ended:
        assert status == 0, err[-3000:]
    return [json.loads(out.splitlines()[-1]) for (out, _), _ in ended]


@functools.cache  # tracing them takes longer than what is done with them
def algorithms() -> dict:
    """Everything that keeps something an environment, or a statistic of all of them.

    With the teacher, if there is one.
    """
    env = jaxkd.envs.make("CartPole-v1", 16)
    big, kl, common = (
        networks.mlp(env, (16,)),
        {"kl": losses.forward_kl()},
        dict(unroll_length=8, num_minibatches=2),
    )
    small, recurrent = (
        networks.mlp(env, (8,), normalise=True),
        networks.lstm(env, (8,), units=8, normalise=True),
    )
    paid = {"normalise": rewards.normalise(0.99)}
    return {
        "replayed": (
            jaxkd.distill(
                env,
                small,
                big,
                losses=kl,
                behavior=behavior.mixture(0.5),
                memory=memory.ring(2),
                **common,
            ),
            big,
        ),
        "recurrent": (jaxkd.ppo(env, recurrent, rewards=paid, **common), None),
        "full shuffle": (jaxkd.ppo(env, small, big, losses=kl, shuffle="full", **common), big),
    }


def trained(wrap, key, names=("replayed", "recurrent", "full shuffle")) -> dict:
    """Params and metrics after one update, in one list, of the named algorithms, wrapped."""
    found = {}
    for name in names:
        algorithm, teacher = algorithms()[name]
        inputs = () if teacher is None else (teacher.init(jax.random.key(1)),)
        state, metrics = jaxkd.run(wrap(algorithm), key, 1, *inputs)
        found[name] = np.concatenate(
            [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves((state.params, metrics))]
        ).tolist()
    return found


def on_meshes() -> None:
    """Prints the results of every mesh."""
    jax.config.update("jax_num_cpu_devices", 8)
    key, keys = jaxkd.seeds(0, 1)[0], jaxkd.seeds(0, 8)
    on = lambda wrap, key, *names, **sizes: trained(
        lambda x: sharding.shard(wrap(x), sharding.mesh(**sizes)), key, names
    )
    alone = lambda x: x
    found = {
        "alone": trained(alone, key),
        "lanes": trained(jaxkd.lanes, keys, ("replayed", "recurrent")),
    }
    found["eight"] = on(alone, key, *found["alone"], envs=8)
    found |= {"two": on(alone, key, "replayed", envs=2), "four": on(alone, key, "replayed", envs=4)}
    found["seeds"] = on(jaxkd.lanes, keys, "replayed", seeds=8)
    found["both"] = on(jaxkd.lanes, keys, "replayed", "recurrent", seeds=2, envs=4)
    print(json.dumps(found))


def in_processes(index: int, port: int) -> None:
    """Prints the results of environments over two processes."""
    jax.distributed.initialize(f"localhost:{port}", 2, index)
    names = ("replayed", "recurrent")
    print(
        json.dumps(
            trained(lambda x: sharding.shard(x, sharding.mesh(envs=2)), jaxkd.seeds(0, 1)[0], names)
        )
    )


def communication() -> None:
    """Prints what one device multiplies in the gradient's forward pass, and where the state is."""
    jax.config.update("jax_num_cpu_devices", 8)
    env = jaxkd.envs.make("CartPole-v1", 16)
    small, big = networks.mlp(env, (11,)), networks.mlp(env, (16,))
    kd = sharding.shard(
        jaxkd.distill(
            env, small, big, losses={"kl": losses.forward_kl()}, unroll_length=8, num_minibatches=2
        ),
        sharding.mesh(envs=8),
    )
    state = jax.jit(kd.init)(jax.random.key(0))
    text = jax.jit(kd.step).lower(state, big.init(jax.random.key(1))).compile().as_text()
    print(
        json.dumps(
            {
                "text": text,
                "obs": str(state.actors.obs.sharding.spec),
                "params": str(jax.tree.leaves(state.params)[0].sharding.spec),
            }
        )
    )


def assert_equal(found: dict, expected: dict) -> None:
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_every_mesh_gives_the_numbers_of_one_device():
    (found,) = children("on_meshes()")
    for name in ("two", "four", "eight"):
        assert_equal(found[name], found["alone"])
    for name in ("seeds", "both"):
        assert_equal(found[name], found["lanes"])


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one():
    first, second = children("in_processes(index, port)", 2)
    assert first == second
    assert_equal(first, trained(lambda x: x, jaxkd.seeds(0, 1)[0], tuple(first)))


def test_a_device_learns_from_its_share_only():
    (found,) = children("communication()")
    assert "envs" in found["obs"]
    assert "envs" not in found["params"]
    # A minibatch is 8 steps x 8 environments; each of 8 devices has 8 of its 64 rows, and what is
    # acted is 2 environments.
    rows = {
        line.split("f32[")[1].split(",")[0]
        for line in found["text"].splitlines()
        if " dot(" in line and ",11]" in line
    }
    assert "8" in rows and "64" not in rows


def test_one_device_is_a_mesh_too(key):
    algorithm, teacher = algorithms()["replayed"]
    state, _ = jaxkd.run(
        sharding.shard(algorithm, sharding.mesh(envs=1)), key, 1, teacher.init(key)
    )
    plain, _ = jaxkd.run(algorithm, key, 1, teacher.init(key))
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_what_cannot_be_spread_is_refused():
    with pytest.raises(
        jaxkd.UsageError,
        match=r"64 seeds takes 64 devices, and there are \d+\. On a CPU, jax.config",
    ):
        sharding.mesh(seeds=64)
    with pytest.raises(jaxkd.UsageError, match="needs seeds= or envs="):
        sharding.mesh()
    with pytest.raises(jaxkd.UsageError, match="axes among"):
        sharding.shard(
            algorithms()["recurrent"][0],
            jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,)),
        )
    with pytest.raises(jaxkd.UsageError, match="wrap the algorithm in lanes"):
        jaxkd.run(
            sharding.shard(algorithms()["recurrent"][0], sharding.mesh(seeds=1)),
            jax.random.key(0),
            1,
        )


def test_environments_that_do_not_divide_are_refused():
    spec = jax.sharding.AbstractMesh((3,), ("envs",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(
        jaxkd.UsageError, match=r"\(16, 4\) cannot be divided among 3 devices along 'envs'"
    ):
        sharding.spread(spec, {"actors": jnp.zeros((16, 4))})
