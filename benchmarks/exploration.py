"""Do the bonuses find what chance does not, and does a teacher that knows half of the way help them?

    python benchmarks/exploration.py                   # everything; or its parts: 14 16 20 half

DeepSea of N x N cells (default action mapping, 64 environments, rollouts of N steps, 20 seeds in one call): environment steps until the greedy policy
walks to the goal, checked after every rollout; a run that never does counts as its budget, in every arm. Arms: none (plain PPO), count, rnd,
drnd, rdd, ensemble; PPO with a bonus is `methods.exploration`. "half": N = 20 and a teacher that is right in the first ten rows and silent below (its
KL is masked there): KL alone, bonus alone, both.
Writes results/exploration/<part>.json and .png.
"""

import sys
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import protocol

import jaxkd
from jaxkd import losses, methods, networks, rewards
from jaxkd.base import Outputs, Policy
from jaxkd.distributions import Categorical

SEED, SEEDS, NUM_ENVS = 3, 20, 64
BUDGET = {14: 250_000, 16: 500_000, 20: 500_000}  # environment steps of one seed
ARMS = {
    14: ("none", "count", "rnd", "drnd", "rdd", "ensemble"),
    16: ("count", "rnd", "drnd", "rdd", "ensemble"),
    20: ("count", "rnd", "ensemble"),
}
GATES = {14: {"rnd": (16, 76_000)}, 16: {"ensemble": (16, 350_000), "rnd": (10, np.inf)}}  # (seeds that solve, median steps)
GATES |= {20: {"count": (18, 100_000), "ensemble": (15, 500_000), "rnd": (10, 500_000)}}
WEIGHT, HELPS = 5.0, 0.6  # of the half-teacher's KL; both against the bonus alone, medians
PREDICTOR = rewards.Predictor(learning_rate=3e-3, num_minibatches=8, normalise=False)


def bonuses(size: int) -> dict:
    """Of the stream "bonus"; the observation of the end is all zeros, so it pays nothing."""
    common = dict(terminal=False, stream="bonus")
    found = {name: getattr(rewards, name)(predictor=PREDICTOR, **common) for name in ("rnd", "drnd", "rdd", "ensemble")}
    return found | {"count": rewards.count(lambda obs: jnp.argmax(obs.reshape(-1)), size * size, **common)}


def keywords(size: int) -> dict:
    return dict(unroll_length=size, num_epochs=4, num_minibatches=4, learning_rate=3e-3, entropy=0.01)


def half_teacher(env) -> Policy:
    """The action that goes right, in every cell; nothing to learn."""
    right = jnp.asarray(_mapping(env.obs_spec.shape[0]))

    def step(params, carry, obs, reset):
        wanted = jnp.einsum("...ij,ij->...", obs, right)
        logits = 5.0 * jnp.stack([1 - 2 * wanted, 2 * wanted - 1], axis=-1)
        return carry, Outputs(Categorical(logits), jnp.zeros(reset.shape))

    return Policy(lambda key: (), lambda num_envs: (), step, step)


def _mapping(size: int) -> np.ndarray:
    """The action that goes right in every cell, [N, N]: gymnax's default."""
    return np.asarray(jax.random.bernoulli(jax.random.key(0), 0.5, (size, size)), np.float32)


def above(student, batch, context):
    """1 in the first half of the rows, where the teacher speaks."""
    size = batch.obs.shape[-1]
    return jnp.einsum("...ij,i->...", batch.obs, (jnp.arange(size) < size // 2).astype(jnp.float32))


def steps_to_solve(algorithm, policy, size: int, budget: int, *inputs) -> np.ndarray:
    """Environment steps [seed] until the greedy policy reaches the goal; inf where it never does."""
    arena, per_update = jaxkd.envs.make("DeepSea-bsuite", 1, size=size), NUM_ENVS * size

    def one(key):
        def body(loop):
            state, _, done = loop
            state, _ = algorithm.step(state, *inputs)
            won = jaxkd.evaluate(arena, policy, state.params, key, num_episodes=1).returns[0] > 0.5
            return state, won, done + 1

        going = lambda loop: ~loop[1] & (loop[2] < budget // per_update)
        _, won, done = jax.lax.while_loop(going, body, (algorithm.init(key), jnp.bool_(False), 0))
        return jnp.where(won, done * per_update, jnp.inf)

    return np.asarray(jax.jit(jax.vmap(one))(protocol.keys(SEED, "deep sea", SEEDS)), np.float64)


def row(found: np.ndarray, budget: int) -> dict:
    return {"solved": int(np.isfinite(found).sum()), "median": float(np.median(np.minimum(found, budget))), "steps": found.tolist()}


def deep_sea(size: int) -> dict:
    """Every arm's steps at one size."""
    env, result = jaxkd.envs.make("DeepSea-bsuite", NUM_ENVS, size=size), {}
    for arm in ARMS[size]:
        began = time.time()
        if arm == "none":
            policy = networks.mlp(env, (64, 64), separate=True)
            algorithm = jaxkd.ppo(env, policy, **keywords(size))
        else:
            policy = networks.mlp(env, (64, 64), separate=True, extra=("bonus",))
            algorithm = methods.exploration(env, policy, bonus=bonuses(size)[arm], **keywords(size))
        result[arm] = row(steps_to_solve(algorithm, policy, size, BUDGET[size]), BUDGET[size])
        print(
            f"N = {size}: {arm:9} solved {result[arm]['solved']}/{SEEDS}, median {result[arm]['median']:.0f} steps, {time.time() - began:.0f} s",
            flush=True,
        )
    return result


def half() -> dict:
    """With and without the half-teacher."""
    size = 20
    env = jaxkd.envs.make("DeepSea-bsuite", NUM_ENVS, size=size)
    teacher, result = half_teacher(env), {}
    kl = {"kl": losses.scale(WEIGHT, losses.gate(above, losses.forward_kl()))}
    plain = networks.mlp(env, (64, 64), separate=True)
    policy = networks.mlp(env, (64, 64), separate=True, extra=("bonus",))
    arms = {"kl": (plain, jaxkd.ppo(env, plain, teacher, losses=kl, **keywords(size)), ((),))}
    for name in ("rnd", "ensemble"):
        bonus = bonuses(size)[name]
        arms[name] = (policy, methods.exploration(env, policy, bonus=bonus, **keywords(size)), ())
        arms[f"{name} + kl"] = (policy, methods.guided_exploration(env, policy, teacher, bonus=bonus, losses=kl, **keywords(size)), ((),))
    for arm, (student, algorithm, inputs) in arms.items():
        began = time.time()
        result[arm] = row(steps_to_solve(algorithm, student, size, BUDGET[size], *inputs), BUDGET[size])
        print(
            f"half: {arm:14} solved {result[arm]['solved']}/{SEEDS}, median {result[arm]['median']:.0f} steps, {time.time() - began:.0f} s",
            flush=True,
        )
    return result


def gate(part: str, result: dict) -> list[str]:
    """What does not hold; empty: passed."""
    failed = []
    if part == "half":
        if result["kl"]["solved"]:
            failed.append(f"KL alone solves {result['kl']['solved']}, wanted none")
        for name in ("rnd", "ensemble"):
            share = result[f"{name} + kl"]["median"] / result[name]["median"]
            if share > HELPS:
                failed.append(f"{name}: with the half-teacher {share:.2f} of the steps without, wanted {HELPS}")
        return failed
    for arm, (solved, median) in GATES[int(part)].items():
        if result[arm]["solved"] < solved or result[arm]["median"] > median:
            failed.append(f"{arm}: {result[arm]['solved']} solve, median {result[arm]['median']:.0f}; wanted {solved}, {median:.0f}")
    if "none" in result and result["rnd"]["median"] > result["none"]["median"] / 3:
        failed.append(f"rnd needs more than a third of the {result['none']['median']:.0f} steps without a bonus")
    return failed


def draw(part: str, result: dict, budget: int):
    """Seeds solved against environment steps."""
    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for arm, found in result.items():
        steps = np.sort([x for x in found["steps"] if np.isfinite(x)])
        axis.step([0, *steps, budget], [0, *range(1, len(steps) + 1), len(steps)], where="post", label=f"{arm} ({found['solved']}/{SEEDS})")
    axis.set(xlabel="environment steps", ylabel="seeds solved", title=f"DeepSea {part}", ylim=(-0.5, SEEDS + 0.5))
    axis.legend(fontsize=8)
    return figure


def settings() -> dict:
    return protocol.digest({k: v for k, v in globals().items() if k.isupper() and isinstance(v, int | float | tuple | dict)})


def main(parts: list[str]) -> int:
    failures = 0
    for part in parts or ("14", "16", "20", "half"):
        began = time.time()
        result = half() if part == "half" else deep_sea(int(part))
        failed = gate(part, result)
        print(*failed or [f"{part}: passed"], sep="\n", flush=True)
        figure = draw(part, result, BUDGET[20 if part == "half" else int(part)])
        protocol.write(
            f"exploration/{part}", {"arms": result, "failed": failed, "seconds": time.time() - began, "settings": settings()}, figure
        )
        failures += len(failed)
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
