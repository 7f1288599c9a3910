"""Is the accelerator right: one update beside a CPU's, and the same bits in two runs."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from programs import Entries, Size, work

REFERENCE = Path(__file__).parent / "accelerator_reference.json"
LIMIT = 1e-4  # of the relative error of an update


def tiny_works() -> dict[str, tuple[Any, tuple]]:
    """One update of each kind, small enough for its parameters to be committed.

    By plain gradient descent, which magnifies no rounding.
    """
    import jax
    import optax

    import jaxkd

    env = jaxkd.envs.make("CartPole-v1", 16)
    teacher, student = jaxkd.networks.mlp(env, (8, 8), separate=True), jaxkd.networks.mlp(env, (8,))
    memory = jaxkd.networks.lstm(env, (8,), units=8)
    common = dict(unroll_length=16, optimizer=optax.sgd(0.1))
    novelty = {
        "rnd": jaxkd.rewards.rnd(
            predictor=jaxkd.rewards.Predictor(hidden=(8, 8), features=4, batch_size=32)
        )
    }
    params = (jax.jit(teacher.init)(jax.random.key(1)),)
    losses = {"kl": jaxkd.losses.forward_kl()}
    return {
        "ppo": (jaxkd.ppo(env, teacher, **common), ()),
        "kl": (jaxkd.distill(env, student, teacher, losses=losses, **common), params),
        "lstm": (
            jaxkd.distill(env, memory, teacher, losses=losses, sequence_length=8, **common),
            params,
        ),
        "rnd": (jaxkd.ppo(env, teacher, rewards=novelty, **common), ()),
    }


def changes(algorithm: Any, inputs: tuple) -> dict[str, list[float]]:
    """What one update changes of every parameter, and its metrics, as numbers."""
    import jax
    import numpy as np

    import jaxkd

    key = jaxkd.seeds(7, 1)[0]
    with jax.default_matmul_precision("highest"):
        before = jax.jit(algorithm.init)(key)
    after, metrics = jaxkd.run(algorithm, key, 1, *inputs, deterministic=True)
    learnt = lambda state: (state.params, [rewards["params"] for rewards in state.rewards.values()])
    moved = jax.tree.map(
        lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64),
        learnt(after),
        learnt(before),
    )
    means = [
        float(value[0])
        for name, value in sorted(metrics.items())
        if name.startswith(("loss/", "reward/"))
    ]
    return {
        "changes": np.concatenate([x.ravel() for x in jax.tree.leaves(moved)]).tolist(),
        "losses": means,
    }


def correct(size: Size) -> Entries:
    """One update beside a CPU's, and the same bits in two deterministic runs; side by side."""
    reference = json.loads(REFERENCE.read_text())
    with ThreadPoolExecutor(8) as pool:
        updates = {name: pool.submit(changes, *made) for name, made in tiny_works().items()}
        twice = {
            deterministic: pool.submit(same_bits, size.few, deterministic)
            for deterministic in (True, False)
        }
        for name, future in updates.items():
            yield {"what": name} | beside(future.result(), reference[name])
        same = {name: future.result() for name, future in twice.items()}
    what = "ppo, CartPole-v1: same bits twice"
    yield {"what": what, "deterministic": same[True], "plain": same[False], "right": same[True]}


def beside(found: dict, reference: dict) -> dict[str, Any]:
    """Relative errors; the update of the parameters alone decides.

    A mean KL at initialisation is 1e-5 nats, a difference of float32 logarithms with three digits:
    5e-4 off on an H100 whose update is 5.6e-6 off. It is reported, not judged.
    """
    import numpy as np

    def error(part):
        here, there = np.array(found[part]), np.array(reference[part])
        if here.shape != there.shape:
            return math.inf
        return float(np.linalg.norm(here - there) / np.linalg.norm(there))

    moved = error("changes")
    return {"relative_error": moved, "of_losses": error("losses"), "right": moved <= LIMIT}


def same_bits(num_envs: int, deterministic: bool) -> bool:
    """Whether two runs of PPO end with the same parameters, bit for bit."""
    import jax

    import jaxkd

    algorithm, inputs = work("ppo", "CartPole-v1", num_envs)
    key = jax.random.key(0)
    runs = [
        jaxkd.run(algorithm, key, 3, *inputs, deterministic=deterministic)[0].params
        for _ in range(2)
    ]
    pairs = zip(*map(jax.tree.leaves, runs), strict=True)
    return all(bool((a == b).all()) for a, b in pairs)


def make_reference() -> None:
    """The committed numbers of one update each, made on a CPU."""
    found = {name: changes(*made) for name, made in tiny_works().items()}
    REFERENCE.write_text(json.dumps(found, indent=None).replace("], ", "],\n") + "\n")
