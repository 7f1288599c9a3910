"""Row "correct": one update beside a CPU's, and the same bits in two deterministic runs."""

import json
import math
from pathlib import Path
from typing import Any

from programs import Entries, Size, work

REFERENCE = Path(__file__).parent / "accelerator_reference.json"


def tiny_works() -> dict[str, tuple[Any, tuple]]:
    """One update of each kind, small enough for its parameters to be committed.

    Plain gradient descent, which magnifies no rounding.
    """
    import jax
    import optax

    import jaxkd

    env = jaxkd.envs.make("CartPole-v1", 16)
    teacher, student = jaxkd.networks.mlp(env, (8, 8), separate=True), jaxkd.networks.mlp(env, (8,))
    memory = jaxkd.networks.lstm(env, (8,), units=8)
    common = dict(unroll_length=16, optimizer=optax.sgd(0.1))
    novelty = {"rnd": jaxkd.rewards.rnd(predictor=jaxkd.rewards.Predictor(hidden=(8, 8), features=4, batch_size=32))}
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
    means = [float(value[0]) for name, value in sorted(metrics.items()) if name.startswith(("loss/", "reward/"))]
    return {
        "changes": np.concatenate([x.ravel() for x in jax.tree.leaves(moved)]).tolist(),
        "losses": means,
    }


def correct(size: Size) -> Entries:
    """One update beside a CPU's, and the same bits in two deterministic runs of PPO.

    "right" is said of the update. The loss that stands beside it is a KL of about 1e-5 nats, the
    difference of float32 logarithms: three of its digits are good on any device.
    """
    import jax
    import numpy as np

    import jaxkd

    reference = json.loads(REFERENCE.read_text())
    for name, (algorithm, inputs) in tiny_works().items():
        found = changes(algorithm, inputs)
        apart = {}
        for part in ("changes", "losses"):
            here, there = np.array(found[part]), np.array(reference[name][part])
            error = np.linalg.norm(here - there) / np.linalg.norm(there)
            apart[part] = float(error) if here.shape == there.shape else math.inf
        error, right = apart["changes"], apart["changes"] <= 1e-4
        yield {"what": name, "relative_error": error, "of_losses": apart["losses"], "right": right}
    algorithm, inputs = work("ppo", "CartPole-v1", size.few)

    def trained(deterministic):
        key = jax.random.key(0)
        state, _ = jaxkd.run(algorithm, key, 3, *inputs, deterministic=deterministic)
        return jax.tree.leaves(state.params)

    same = {}
    for way in (True, False):
        twice = zip(trained(way), trained(way), strict=True)
        same[way] = all(bool((a == b).all()) for a, b in twice)
    what = "ppo, CartPole-v1: same bits twice"
    yield {"what": what, "deterministic": same[True], "plain": same[False], "right": same[True]}


def make_reference() -> None:
    """The committed numbers of one update each, made on a CPU."""
    found = {name: changes(*made) for name, made in tiny_works().items()}
    REFERENCE.write_text(json.dumps(found, indent=None).replace("], ", "],\n") + "\n")
