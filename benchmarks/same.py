"""Whether a change of the engine changed a result: five updates of twelve configurations, as
numbers.

    python benchmarks/same.py write FILE.npz        # with the code before
    python benchmarks/same.py compare FILE.npz      # with the code after

What is compared: student's and loss parameters, and every metric, bit for bit; where bits differ,
the largest difference relative to the size of the array after ONE update.
XLA_FLAGS=--xla_disable_hlo_passes=fusion turns fusion off, which alone can move a last bit.
"""

import sys
from pathlib import Path

import jax
import numpy as np

import jaxkd
from jaxkd import losses, methods, networks, returns, rewards

UPDATES = 5


def configurations() -> dict:
    """{name: (algorithm, key or keys, inputs)}."""
    make = jaxkd.envs.make
    env = make("CartPole-v1", 16)
    big, small = networks.mlp(env, (16, 16), separate=True), networks.mlp(env, (8,))
    params = (big.init(jax.random.key(1)),)
    kl = {"kl": losses.forward_kl()}
    common = dict(unroll_length=16, num_minibatches=4)
    key, kd = jax.random.key(0), jaxkd.distill(env, small, big, losses=kl, **common)
    deep = networks.mlp(env, (16,), layer_norm=True, normalise=True, activation=jax.nn.relu)
    curious = networks.mlp(env, (16,), separate=True, extra=("bonus",))
    lstm = networks.lstm(env, (16,), units=16)
    grouped = make("CartPole-v1", 16, group_size=4, max_steps=16)
    both = jaxkd.envs.concat(make("CartPole-v1", 8), make("Acrobot-v1", 8))
    many = networks.multihead(both, (16,))
    short, brief = make("Pendulum-v1", 16, max_steps=5), make("CartPole-v1", 16, max_steps=3)
    actor = networks.mlp(short, (16,), separate=True, normalise=True)
    ppo = jaxkd.ppo(env, big, **common)
    return {
        "ppo": (ppo, key, ()),
        "pqn": (jaxkd.pqn(env, deep, **common), key, ()),
        "kl": (kd, key, params),
        "dagger": (methods.dagger(env, small, big, capacity=3, **common), key, params),
        "rnd": (methods.exploration(env, curious, **common), key, ()),
        "grpo": (methods.grpo(grouped, small, big, num_minibatches=4), key, params),
        "lstm": (jaxkd.ppo(env, lstm, big, losses=kl, sequence_length=4, **common), key, params),
        "tasks": (
            jaxkd.ppo(both, many, losses={"first": losses.for_task(0, losses.entropy())}, **common),
            key,
            (),
        ),
        "cut": (jaxkd.ppo(brief, lstm, returns=returns.gae(0.99, 0.9), **common), key, ()),
        "continuous": (
            jaxkd.ppo(short, actor, rewards={"n": rewards.normalise(0.99)}, **common),
            key,
            (),
        ),
        "lanes": (jaxkd.lanes(kd), jaxkd.seeds(0, 3), params),
        "sharded": (jaxkd.sharding.shard(ppo, jaxkd.sharding.mesh(envs=2)), key, ()),
    }


def numbers(num_updates: int) -> dict[str, np.ndarray]:
    """Every array of every configuration, by name."""
    found = {}
    for name, (algorithm, key, inputs) in configurations().items():
        state, metrics = jaxkd.run(algorithm, key, num_updates, *inputs)
        leaves = jax.tree_util.tree_flatten_with_path((state.params, state.loss_params, metrics))[0]
        for i, (_, leaf) in enumerate(leaves):  # by place: names of parameters may change
            found[f"{name}/{num_updates}/{i:03d}"] = np.asarray(leaf)
    return found


def main(mode: str, file: str) -> None:
    found = numbers(UPDATES) | numbers(1)
    if mode == "write":
        np.savez(Path(file), **found)
        return
    with np.load(file) as before:
        names = sorted({name.split("/")[0] for name in before.files})
        for name in names:
            whole = sorted(k for k in before.files if k.startswith(f"{name}/"))
            missing = [k for k in whole if k not in found]
            equal = not missing and all(
                np.array_equal(before[k], found[k], equal_nan=True) for k in whole
            )
            apart = [
                np.nanmax(np.abs(before[k] - found[k])) / max(np.nanmax(np.abs(before[k])), 1e-8)
                for k in whole
                if k in found and f"/{1}/" in k and before[k].shape == found[k].shape
            ]
            print(
                f"{name:12}{'equal' if equal else 'DIFFERS'}  {max(apart, default=np.nan):.1e}  "
                f"{len(missing)} missing"
            )


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    main(*sys.argv[1:])
