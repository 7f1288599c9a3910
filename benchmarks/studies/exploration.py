"""Do the bonuses find what chance does not, and does a teacher that knows half of the way help
them?

    python benchmarks/studies/exploration.py            # all parts; or some of 14 16 20 half rooms

DeepSea of N x N cells (default action mapping, 64 environments, rollouts of N steps, 20 seeds in
one call): environment steps until the greedy policy walks to the goal, checked after every rollout;
a run that never does counts as its budget, in every arm. Arms: none (plain PPO), count, rnd, drnd,
rdd, ensemble; PPO with a bonus is `methods.exploration`. "half": N = 20 and a teacher that is right
in the first ten rows and silent below (its KL is masked there). "rooms": FourRooms seen as a
picture, 40 steps an episode, the goal two rooms away, and a teacher that has learnt to go to
another goal, one room away; its KL fades; solved is a greedy policy that arrives in half of its
episodes. In both: distillation alone, without a reward, PPO with the KL, each bonus alone
(`methods.exploration`), and both (`methods.guided_exploration`). Writes
results/studies/exploration/<part>.json and .png; committed arms with today's settings are kept.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Study, __doc__, __file__)

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxkd
from benchmarks import protocol
from jaxkd import losses, methods, networks, rewards
from jaxkd.base import Outputs, Policy
from jaxkd.distributions import Categorical

NUM_ENVS = 64
SEED, FRESH = (
    3,
    5,
)  # FRESH: of arms whose predictors were set, on seed 2, after they had missed a line on seed 3
BUDGET = {14: 250_000, 16: 500_000, 20: 500_000}  # environment steps of one seed
ARMS = ("none", "count", "rnd", "drnd", "rdd", "ensemble")
GATES = {
    14: {"rnd": (16, 76_000)},
    16: {"ensemble": (16, 350_000), "rnd": (10, np.inf)},
}  # (seeds that solve, median steps)
GATES |= {20: {"count": (18, 100_000), "ensemble": (15, 500_000), "rnd": (10, 500_000)}}
WEIGHT, HELPS = 5.0, 0.6  # of the half-teacher's KL; both against the bonus alone, medians
ROOMS = {
    "goal": (11, 11),
    "teachers_goal": (5, 9),
    "limit": 40,
    "weight": 1.0,
    "half_life": 5.0,
    "budget": 500_000,
    "episodes": 32,
}
PREDICTOR = rewards.Predictor(learning_rate=3e-3, num_minibatches=8, normalise=False)
PREDICTORS = dict.fromkeys(("rnd", "ensemble"), PREDICTOR._replace(num_minibatches=16))
DEFAULTS = {  # of `rewards.Predictor`, 2026-11: never edited, see `protocol.changed`
    "hidden": (64, 64),
    "features": 64,
    "learning_rate": 1e-3,
    "batch_size": 256,
    "num_minibatches": 2,
    "normalise": True,
    "statistics": None,
}


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    parts: tuple[str, ...] = ("14", "16", "20", "half", "rooms")
    arms: dict[str, tuple[str, ...]] = {}  # by part, default all
    seeds: int = 20
    num_envs: int = NUM_ENVS
    depth: int = 20  # of DeepSea in "half"
    lessons: int = 100  # updates of the teacher in "rooms"
    budget: int | None = None  # environment steps of one seed, default the part's


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(parts=("14",), arms={"14": ("none", "count", "rnd")}, seeds=5),
    "tiny": Sizes(
        parts=("4", "half", "rooms"),
        arms={"4": ("none", "count"), "half": ("rnd", "rnd + kl"), "rooms": ("distillation",)},
        seeds=1,
        num_envs=16,
        depth=4,
        lessons=1,
        budget=640,
    ),
}


def bonus(name: str, size: int = 0):
    """Of the stream "bonus"; an end pays nothing: in DeepSea its observation is all zeros."""
    common: dict = dict(terminal=False, stream="bonus")
    if name == "count":
        return rewards.count(lambda obs: jnp.argmax(obs.reshape(-1)), size * size, **common)
    return getattr(rewards, name)(predictor=PREDICTORS.get(name, PREDICTOR), **common)


def keywords(size: int) -> dict:
    return dict(
        unroll_length=size, num_epochs=4, num_minibatches=4, learning_rate=3e-3, entropy=0.01
    )


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


def steps_to_solve(
    algorithm, policy, arena, per_update: int, budget: int, *inputs, keys
) -> np.ndarray:
    """Environment steps [seed] until the greedy policy gets half of the arena's return of 1; inf
    where it never does.
    """

    def one(key):
        def body(loop):
            state, _, done = loop
            state, _ = algorithm.step(state, *inputs)
            won = (
                jaxkd.evaluate(
                    arena, policy, state.params, key, num_episodes=arena.num_envs
                ).returns.mean()
                > 0.5
            )
            return state, won, done + 1

        going = lambda loop: ~loop[1] & (loop[2] < budget // per_update)
        _, won, done = jax.lax.while_loop(going, body, (algorithm.init(key), jnp.bool_(False), 0))
        return jnp.where(won, done * per_update, jnp.inf)

    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def row(found: np.ndarray, budget: int) -> dict:
    return {
        "solved": int(np.isfinite(found).sum()),
        "median": float(np.median(np.minimum(found, budget))),
        "steps": found.tolist(),
    }


def deep_sea(size: int, sizes: Sizes) -> dict[str, Callable]:
    """What runs every arm with so many cells a side."""
    env, arena = (jaxkd.envs.make("DeepSea-bsuite", n, size=size) for n in (sizes.num_envs, 1))
    plain, curious = (
        networks.mlp(env, (64, 64), separate=True, extra=extra) for extra in ((), ("bonus",))
    )

    def arm(name):
        if name == "none":
            return plain, jaxkd.ppo(env, plain, **keywords(size))
        return curious, methods.exploration(env, curious, bonus=bonus(name, size), **keywords(size))

    def run(name, keys):
        policy, algorithm = arm(name)
        budget, per_update = budget_of(str(size), sizes), sizes.num_envs * size
        return steps_to_solve(algorithm, policy, arena, per_update, budget, keys=keys)

    return {name: partial(run, name) for name in ARMS}


class Task(NamedTuple):
    """What a teacher knows half of."""

    env: Any
    arena: Any
    teacher: Policy
    params: Any  # the teacher's
    kl: Any  # its loss term
    keywords: dict
    budget: int


def half(sizes: Sizes) -> Task:
    size = sizes.depth
    env, arena = (jaxkd.envs.make("DeepSea-bsuite", n, size=size) for n in (sizes.num_envs, 1))
    kl = losses.scale(WEIGHT, losses.gate(above, losses.forward_kl()))
    return Task(env, arena, half_teacher(env), (), kl, keywords(size), budget_of("half", sizes))


def rooms(sizes: Sizes) -> Task:
    goal, limit = ROOMS["goal"], ROOMS["limit"]
    make = lambda n, goal, limit: jaxkd.envs.make(
        "FourRooms-misc", n, use_visual_obs=True, goal_fixed=list(goal), max_steps=limit
    )
    env, arena, school = (
        make(sizes.num_envs, goal, limit),
        make(ROOMS["episodes"], goal, limit),
        make(sizes.num_envs, ROOMS["teachers_goal"], 500),
    )
    teacher = networks.mlp(school, (64, 64), separate=True)
    state, metrics = jaxkd.run(
        jaxkd.ppo(school, teacher, **keywords(limit)),
        protocol.keys(SEED, "teacher of rooms", 1)[0],
        sizes.lessons,
    )
    print(f"rooms: the teacher gets {metrics['return'][-1]:.2f} of its own goal", flush=True)
    kl = losses.scale(
        lambda update: ROOMS["weight"] * 0.5 ** (update / ROOMS["half_life"]), losses.forward_kl()
    )
    budget = budget_of("rooms", sizes)
    return Task(env, arena, teacher, state.params, kl, keywords(limit), budget)


def guided(task: Task) -> dict[str, Callable]:
    """What runs every arm, with and without the teacher."""
    env, given, kl = task.env, task.keywords, {"kl": task.kl}
    plain, curious = (
        networks.mlp(env, (64, 64), separate=True, extra=extra) for extra in ((), ("bonus",))
    )
    sizes = {name: given[name] for name in ("unroll_length", "num_epochs", "num_minibatches")}
    distil = partial(jaxkd.distill, env, plain, task.teacher, losses=kl, **sizes)
    taught = partial(jaxkd.ppo, env, plain, task.teacher, losses=kl, **given)
    params = (task.params,)
    arms: dict = {"distillation": (plain, distil, params), "kl": (plain, taught, params)}
    for name in PREDICTORS:
        common = dict(bonus=bonus(name), **given)
        both = partial(methods.guided_exploration, env, curious, task.teacher, losses=kl, **common)
        arms[name] = (curious, partial(methods.exploration, env, curious, **common), ())
        arms[f"{name} + kl"] = (curious, both, params)
    per_update = env.num_envs * given["unroll_length"]

    def run(policy, make, inputs, keys):
        return steps_to_solve(
            make(), policy, task.arena, per_update, task.budget, *inputs, keys=keys
        )

    return {name: partial(run, *arm) for name, arm in arms.items()}


TASKS = {"half": half, "rooms": rooms}
TITLES = {
    "half": "DeepSea 20, a teacher of its first half",
    "rooms": "FourRooms, a teacher with another goal",
}


def budget_of(part: str, sizes: Sizes = SIZES["full"]) -> int:
    if sizes.budget is not None:
        return sizes.budget
    return ROOMS["budget"] if part == "rooms" else BUDGET[20 if part == "half" else int(part)]


def gate(part: str, result: dict) -> list[str]:
    """What does not hold; empty: passed."""
    failed = []
    if part in TASKS:
        if result.get("distillation", {"solved": 0})["solved"]:
            failed.append(
                f"distillation alone solves {result['distillation']['solved']}, wanted none"
            )
        for name in [name for name in PREDICTORS if name in result]:
            share = result[f"{name} + kl"]["median"] / result[name]["median"]
            if share > HELPS:
                failed.append(
                    f"{name}: with the teacher {share:.2f} of the steps without, wanted {HELPS}"
                )
        return failed
    for arm, (solved, median) in GATES.get(int(part), {}).items():
        if arm not in result:
            continue
        if result[arm]["solved"] < solved or result[arm]["median"] > median:
            failed.append(
                f"{arm}: {result[arm]['solved']} solve, median {result[arm]['median']:.0f}; wanted "
                f"{solved}, {median:.0f}"
            )
    if {"rnd", "none"} <= set(result) and result["rnd"]["median"] > result["none"]["median"] / 3:
        failed.append(
            f"rnd needs more than a third of the {result['none']['median']:.0f} steps without a "
            "bonus"
        )
    return failed


def draw(part: str, result: dict, budget: int):
    """Seeds solved against environment steps."""
    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    seeds = max(len(found["steps"]) for found in result.values())
    for arm, found in result.items():
        steps = np.sort([x for x in found["steps"] if np.isfinite(x)])
        axis.step(
            [0, *steps, budget],
            [0, *range(1, len(steps) + 1), len(steps)],
            where="post",
            label=f"{arm} ({found['solved']}/{seeds})",
        )
    axis.set(
        xlabel="environment steps",
        ylabel="seeds solved",
        title=TITLES.get(part, f"DeepSea {part}"),
        ylim=(-0.5, seeds + 0.5),
    )
    axis.legend(fontsize=8)
    return figure


def seed_of(arm: str) -> int:
    return FRESH if arm.removesuffix(" + kl") in PREDICTORS else SEED


def settings(part: str, arm: str, sizes: Sizes = SIZES["full"]) -> dict:
    """What an arm's figures depend on; the bonus alone is the same in "half" as in 20."""
    predictor = PREDICTORS.get(arm.removesuffix(" + kl"), PREDICTOR)
    values: dict = {
        "arm": arm,
        "seed": seed_of(arm),
        "seeds": sizes.seeds,
        "num_envs": sizes.num_envs,
        "budget": budget_of(part, sizes),
        "predictor": protocol.changed(predictor, DEFAULTS),
    }
    values |= protocol.smaller(sizes)
    if part == "rooms":
        return protocol.digest(values | {"keywords": keywords(ROOMS["limit"]), "rooms": ROOMS})
    side, weight = sizes.depth if part == "half" else int(part), WEIGHT * (arm not in ARMS)
    return protocol.digest(values | {"keywords": keywords(side), "weight": weight})


def committed(part: str) -> dict[str, dict]:
    """Arms that were committed with today's settings."""
    found, parts = {}, (["20"] if part == "half" else []) + [part]
    for file in [protocol.RESULTS / f"studies/exploration/{name}.json" for name in parts]:
        arms = json.loads(file.read_text())["arms"] if file.exists() else {}
        for arm, made in arms.items():
            if made["settings"]["digest"] == settings(part, arm)["digest"]:
                found[arm] = made
    return found


def measure(part: str, sizes: Sizes) -> dict[str, dict]:
    """Every arm's figures."""
    again = frame.place().fresh or frame.place().label != frame.FULL
    found = {} if again else committed(part)
    arms = guided(TASKS[part](sizes)) if part in TASKS else deep_sea(int(part), sizes)
    arms = {arm: arms[arm] for arm in sizes.arms.get(part, arms)}

    def figures(arm: str) -> dict:
        steps = arms[arm](protocol.keys(seed_of(arm), "deep sea", sizes.seeds))
        return row(steps, budget_of(part, sizes))

    left = {arm: partial(figures, arm) for arm in arms if arm not in found}
    shared = {arm: run for arm, run in left.items() if part == "half" and arm in ARMS}
    own = {arm: run for arm, run in left.items() if arm not in shared}
    made = partial(settings, part, sizes=sizes)
    for place, runs in (("20", shared), (part, own)):
        rows, seconds = protocol.arms(f"exploration/{place}", runs, made, told)
        for arm, values in rows.items():
            found[arm] = values | {"seconds": seconds[arm], "settings": made(arm)}
    return {arm: found[arm] for arm in arms}


def told(found: dict) -> str:
    """One arm's line."""
    return f"solved {found['solved']}/{len(found['steps'])}, median {found['median']:.0f} steps"


def main(given: frame.Study) -> int:
    sizes, failures = frame.sized(given, SIZES), []
    for part in frame.chosen(given.names, sizes.parts):
        result = measure(part, sizes)
        failed = gate(part, result)
        protocol.write(
            f"exploration/{part}",
            {"arms": result, "failed": failed},
            draw(part, result, budget_of(part, sizes)),
        )
        failures += [f"{part}: {line}" for line in failed]
    return protocol.verdict(failures)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
