"""Does a bonus do harm where none is needed?

    python benchmarks/studies/no_harm.py                       # all games; or their names

Teachers of the presets, 20 seeds in one call, with and without random network distillation
(`methods.exploration`, the predictor of its defaults, the student's second value head), the same
number of updates; greedy returns over 128 episodes. MountainCar also raw: neither observations nor
rewards normalised. Breakout and SpaceInvaders with an MLP of 128-128, STEPS environment steps.
Writes results/studies/no_harm/<game>.json, then results/studies/no_harm.json and .png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Named, __doc__, __file__)

import sys
import time

import matplotlib.pyplot as plt
import numpy as np

import jaxkd
from benchmarks import protocol
from jaxkd import methods, networks, presets, rewards
from jaxkd.cli import training
from jaxkd.presets import Preset

GAMES = (
    "CartPole-v1",
    "MountainCar-v0",
    "MountainCar-v0 raw",
    "Breakout-MinAtar",
    "SpaceInvaders-MinAtar",
)
SEED, SEEDS, EPISODES, STEPS = 3, 20, 128, 300_000
LOST, KEPT = (
    10.0,
    0.95,
)  # points that MountainCar may lose; share of PPO's return that the other games keep


def settings_of(name: str) -> Preset:
    p = presets.preset(name.split()[0])
    if name.endswith("raw"):
        return p._replace(normalise_obs=False, normalise_reward=False)
    return p._replace(num_steps=STEPS, channels=(), hidden=(128, 128)) if p.channels else p


def arms(env, p: Preset) -> dict:
    """(policy, algorithm, updates) by name."""
    plain = presets.teacher_network(env, p)
    ppo, num_updates = presets.teaching(env, plain, p)
    given = presets.METHODS["exploration"].settings(env, p, num_updates)
    curious = networks.mlp(
        env, p.hidden, separate=True, normalise=p.normalise_obs, extra=("bonus",)
    )
    rnd = methods.exploration(env, curious, bonus=rewards.rnd(stream="bonus"), **given)
    return {"ppo": (plain, ppo, num_updates), "rnd": (curious, rnd, num_updates)}


def curve(returns: np.ndarray) -> list[float | None]:
    """The seeds' mean while learning [updates]; None before the first episode has ended."""
    return [float(training.mean(row)) if np.isfinite(row).any() else None for row in returns]


def experiment(name: str) -> dict:
    p = settings_of(name)
    game = name.split()[0]
    env, arena, found = (
        presets.make_env(game, p),
        presets.make_env(game, p._replace(num_envs=EPISODES)),
        {},
    )
    for arm, (policy, algorithm, num_updates) in arms(env, p).items():
        began = time.time()
        state, metrics = jaxkd.run(
            jaxkd.lanes(algorithm), protocol.keys(SEED, f"{game} teacher", SEEDS), num_updates
        )
        returns, _ = protocol.score(
            arena, policy, state.params, protocol.keys(SEED, f"{game} score", SEEDS), EPISODES
        )
        found[arm] = protocol.summary(returns) | {"learning": curve(np.asarray(metrics["return"]))}
        print(
            f"{name}: {arm} {returns.mean():.2f} (worst {returns.min():.2f}), {time.time() - began:.0f} s",
            flush=True,
        )
    return {"arms": found, "random": protocol.random_return(arena, SEED, EPISODES)}


def gate(results: dict) -> list[str]:
    """What does not hold; empty: passed."""
    failed = []
    for name, result in results.items():
        ppo, rnd = (result["arms"][arm]["mean"] for arm in ("ppo", "rnd"))
        wanted = ppo - LOST if name.startswith("MountainCar") else KEPT * ppo
        if rnd < wanted and not name.endswith("raw"):
            failed.append(f"{name}: with RND {rnd:.2f}, without {ppo:.2f}; wanted {wanted:.2f}")
    return failed


def draw(results: dict):
    figure, axes = plt.subplots(
        1, len(results), figsize=(3.6 * len(results), 3.4), layout="constrained", squeeze=False
    )
    for axis, (name, result) in zip(axes[0], results.items(), strict=True):
        for arm, colour in (("ppo", "tab:blue"), ("rnd", "tab:red")):
            found = result["arms"][arm]
            p, returns = settings_of(name), np.array(found["learning"], float)
            axis.plot(
                np.arange(1, len(returns) + 1) * p.num_envs * p.unroll_length,
                returns,
                color=colour,
                label=f"{arm}: greedy {found['mean']:.1f}",
            )
        axis.set(title=name, xlabel="environment steps", ylabel="return while learning")
        axis.legend(fontsize=7)
    return figure


def settings() -> dict:
    values: dict = {
        k: v
        for k, v in globals().items()
        if k.isupper() and isinstance(v, int | float | tuple | dict)
    }
    return protocol.digest(
        values | {"presets": {name: protocol.changed(settings_of(name)) for name in GAMES}}
    )


def main(names: list[str]) -> int:
    results = protocol.by_game("no_harm", names, GAMES, experiment, settings())
    if not results:
        return 0
    results = {name: results[name] for name in GAMES}
    failed = gate(results)
    print(*failed or ["passed"], sep="\n")
    protocol.write("no_harm", {"failed": failed, "settings": settings()}, draw(results))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(list(GIVEN.names)))
