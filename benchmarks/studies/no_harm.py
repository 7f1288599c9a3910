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
    GIVEN = frame.start(frame.Study, __doc__, __file__)

import sys
from functools import partial
from typing import NamedTuple

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


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    games: tuple[str, ...] = GAMES
    seeds: int = SEEDS
    episodes: int = EPISODES
    preset: dict = {}


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(games=("CartPole-v1", "MountainCar-v0"), seeds=5),
    "tiny": Sizes(("CartPole-v1",), 1, 2, protocol.TINY_PRESET),
}


def settings_of(name: str, size: Sizes) -> Preset:
    p = protocol.earlier(name.split()[0], size)
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


def experiment(name: str, size: Sizes) -> dict:
    p = settings_of(name, size)
    game = name.split()[0]
    env = presets.make_env(game, p)
    arena = presets.make_env(game, p._replace(num_envs=size.episodes))

    def run(policy, algorithm, num_updates: int) -> dict:
        keys = protocol.keys(SEED, f"{game} teacher", size.seeds)
        state, metrics = jaxkd.run(jaxkd.lanes(algorithm), keys, num_updates)
        keys = protocol.keys(SEED, f"{game} score", size.seeds)
        returns, _ = protocol.score(arena, policy, state.params, keys, size.episodes)
        return protocol.summary(returns) | {"learning": curve(np.asarray(metrics["return"]))}

    runs = {arm: partial(run, *made) for arm, made in arms(env, p).items()}
    say = lambda found: f"{found['mean']:.2f} (worst {found['worst']:.2f})"
    found, _ = protocol.arms(f"no_harm/{name}", runs, lambda _: settings(size), say)
    return {"arms": found, "random": protocol.random_return(arena, SEED, size.episodes)}


def gate(results: dict) -> list[str]:
    """What does not hold; empty: passed."""
    failed = []
    for name, result in results.items():
        ppo, rnd = (result["arms"][arm]["mean"] for arm in ("ppo", "rnd"))
        wanted = ppo - LOST if name.startswith("MountainCar") else KEPT * ppo
        if rnd < wanted and not name.endswith("raw"):
            failed.append(f"{name}: with RND {rnd:.2f}, without {ppo:.2f}; wanted {wanted:.2f}")
    return failed


def draw(results: dict, size: Sizes):
    figure, axes = plt.subplots(
        1, len(results), figsize=(3.6 * len(results), 3.4), layout="constrained", squeeze=False
    )
    for axis, (name, result) in zip(axes[0], results.items(), strict=True):
        for arm, colour in (("ppo", "tab:blue"), ("rnd", "tab:red")):
            found = result["arms"][arm]
            p, returns = settings_of(name, size), np.array(found["learning"], float)
            axis.plot(
                np.arange(1, len(returns) + 1) * p.num_envs * p.unroll_length,
                returns,
                color=colour,
                label=f"{arm}: greedy {found['mean']:.1f}",
            )
        axis.set(title=name, xlabel="environment steps", ylabel="return while learning")
        axis.legend(fontsize=7)
    return figure


def settings(size: Sizes = SIZES["full"]) -> dict:
    values = protocol.constants(globals(), int | float | tuple | dict)
    given = {name: protocol.changed(settings_of(name, size)) for name in GAMES}
    return protocol.digest(values | {"presets": given} | protocol.smaller(size))


def main(given: frame.Study) -> int:
    size = frame.sized(given, SIZES)
    judge = lambda results: {"failed": gate(results)}
    return protocol.over_games("no_harm", given, size, experiment, settings(size), judge, draw)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
