"""What do a teacher and its student reach in every environment, with nothing chosen by hand?

    python benchmarks/studies/everywhere.py [ENVIRONMENTS]

gymnax's environments that fit a small network, with the settings of `presets.preset`: 4 teachers,
each with a student of 1/15 of its own, greedy and sampled over 128 episodes a seed on other keys,
beside random play and a reference: the best return there is, where it is known. "earlier" is what
had no row before, and how much of its teacher that kept: 48 updates of student, and for continuous
actions the settings of discrete ones. MetaMaze has an LSTM too, teacher and student. The games of
MinAtar with a CNN are those of gates.py. Writes results/studies/everywhere/<environment>.json.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Study, __doc__, __file__)

import sys
from typing import NamedTuple

import jax
import numpy as np
from gymnax import registered_envs

import jaxkd
from benchmarks import protocol
from jaxkd import networks, presets
from jaxkd.presets import PRESETS, Preset

RESULTS = protocol.RESULTS / "studies" / "everywhere"
SEED = 6  # 5 was seen by a gate that failed
LSTM = "MetaMaze-misc with an LSTM"
APART = ("MNISTBandit-bsuite", *(name for name, p in PRESETS.items() if p.channels))
GAMES = (*(name for name in registered_envs if name not in APART), LSTM)
# The best return, and how it is known.
REFERENCE = {
    "CartPole-v1": (500.0, "the time limit"),
    "Catch-bsuite": (1.0, "every ball"),
    "DeepSea-bsuite": (0.99, "the treasure less eight moves of .01 / 8"),
    "DiscountingChain-bsuite": (1.1, "the longest delay's reward"),
    "FourRooms-misc": (1.0, "the goal"),
    "MemoryChain-bsuite": (1.0, "always right; chance is 0"),
    "SimpleBandit-bsuite": (1.0, "the best arm"),
}
EARLIER = Preset(normalise_obs=True, normalise_reward=True, num_steps=500_000)
FIGURES = ("greedy", "sampled")


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    games: tuple[str, ...] = GAMES
    seeds: int = 4
    episodes: int = 128
    preset: dict = {}


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(("DeepSea-bsuite", "FrozenLake-misc"), 2),
    "tiny": Sizes(("DeepSea-bsuite", LSTM), 1, 2, protocol.TINY_PRESET),
}


def env_name(game: str) -> str:
    return game.split()[0]


def plans(game: str, size: Sizes) -> dict[str, Preset]:
    """{who: the settings}: today's, and what was before where there was no row."""
    found = {"today": protocol.preset(env_name(game), size)}
    if game not in PRESETS and game != LSTM:
        found["earlier"] = EARLIER._replace(**size.preset)
    return found


def teacher_of(game: str, env, p: Preset):
    if game == LSTM:
        return networks.lstm(env, (32,), units=32, normalise=p.normalise_obs)
    return presets.teacher_network(env, p)


def student_of(game: str, env, p: Preset, size: int):
    """The student of a fifteenth; an LSTM's has as many dense units as cells."""
    if game != LSTM:
        return presets.student_network(env, p, "auto:1/15", size)
    made = [networks.lstm(env, (n,), units=n, normalise=p.normalise_obs) for n in range(1, 33)]
    sizes = [
        jaxkd.actor_size(x, jax.eval_shape(x.init, jax.random.key(0)), env.obs_spec) for x in made
    ]
    return made[int(np.abs(np.array(sizes) - size / 15).argmin())]


def scores(arena, policy, params, who: str, episodes: int) -> dict[str, np.ndarray]:
    """Mean returns [seeds], greedy and sampled."""
    n = jax.tree.leaves(params)[0].shape[0]
    found = {}
    for how in FIGURES:
        keys = protocol.keys(SEED, f"score {who} {how}", n)
        greedy = how == "greedy"
        found[how] = protocol.score(arena, policy, params, keys, episodes, greedy=greedy)[0]
    return found


def experiment(game: str, p: Preset, size: Sizes) -> dict:
    """Teachers, a student each, and random play."""
    name = env_name(game)
    arena = jaxkd.envs.make(name, size.episodes, sticky=p.sticky)
    arena = arena if arena.max_steps else jaxkd.envs.make(name, size.episodes, max_steps=1000)
    env = presets.make_env(name, p)
    teacher = teacher_of(game, env, p)
    algorithm, updates = presets.teaching(env, teacher, p)
    taught, _ = jaxkd.run(
        jaxkd.lanes(algorithm), protocol.keys(SEED, "teacher", size.seeds), updates
    )
    one = jax.tree.map(lambda x: x[0], taught.params)
    large = jaxkd.actor_size(teacher, one, env.obs_spec)
    student = student_of(game, env, p, large)
    copying, copies = presets.distillation(env, student, teacher, p)
    keys = protocol.keys(SEED, "student", size.seeds)
    learn = lambda key, params: jaxkd.run(copying, key, copies, params)
    learnt, metrics = jax.jit(jax.vmap(learn))(keys, taught.params)
    one = jax.tree.map(lambda x: x[0], learnt.params)
    return {
        "teacher": scores(arena, teacher, taught.params, "teacher", size.episodes)
        | {"steps": updates * p.num_envs * p.unroll_length, "parameters": large},
        "student": scores(arena, student, learnt.params, "student", size.episodes)
        | {
            "steps": copies * p.num_envs * p.unroll_length,
            "parameters": jaxkd.actor_size(student, one, env.obs_spec),
            "kl": metrics["loss/kl"][:, -1],
        },
        "random": protocol.random_return(arena, SEED, size.episodes),
    }


def kept(found: dict, how: str) -> float | None:
    """The share of the teachers' mean above random play; None where they are not above it."""
    teachers, floor = np.array(found["teacher"][how]), found["random"]
    if teachers.mean() - 2 * teachers.std() <= floor:
        return None
    return float((np.mean(found["student"][how]) - floor) / (teachers.mean() - floor))


def settings(game: str, size: Sizes = SIZES["full"]) -> dict:
    """All that a result depends on, and its digest."""
    chosen = {who: protocol.changed(p) for who, p in plans(game, size).items()}
    values = {"env": game, "seeds": size.seeds, "episodes": size.episodes, "seed": SEED}
    return protocol.digest(values | {"presets": chosen})


def told(found: dict) -> str:
    """An arm's line."""
    shares = [kept(found, how) for how in FIGURES]
    shares = ["-" if share is None else f"{share:.3f}" for share in shares]
    teachers = np.round(found["teacher"]["greedy"], 2)
    return f"random {found['random']:.2f}, teachers {teachers}, kept {' '.join(shares)}"


# What must hold: of the worst teacher, and of what students keep, greedy and sampled.
LEAST_TEACHER = {"DeepSea-bsuite": 0.98}
MEAN_TEACHER = {"Swimmer-misc": 250.0}
LEAST_KEPT = {"Reacher-misc": 0.95, LSTM: 0.9}


def gate(game: str, result: dict) -> list[str]:
    """What does not hold; empty: passed."""
    today, failed = result["today"], []
    teachers = today["teacher"]["greedy"]
    if min(teachers) < LEAST_TEACHER.get(game, -np.inf):
        failed.append(f"the worst teacher {min(teachers):.2f}, wanted {LEAST_TEACHER[game]}")
    if np.mean(teachers) < MEAN_TEACHER.get(game, -np.inf):
        failed.append(f"teachers {np.mean(teachers):.1f}, wanted {MEAN_TEACHER[game]}")
    for how in FIGURES if game in LEAST_KEPT else ():
        share = kept(today, how)
        if share is None or share < LEAST_KEPT[game]:
            failed.append(f"students keep {share} ({how}), wanted {LEAST_KEPT[game]}")
    return failed


def main(given: frame.Study) -> int:
    size, failed = frame.sized(given, SIZES), []
    for game in frame.chosen(given.names, size.games):
        runs = {
            who: lambda p=p, game=game: experiment(game, p, size)
            for who, p in plans(game, size).items()
        }
        name = f"everywhere/{game.replace(' ', '-')}"
        chosen = settings(game, size)
        arms, seconds = protocol.arms(name, runs, lambda _, chosen=chosen: chosen, told)
        result = {"settings": chosen, "reference": REFERENCE.get(game)} | arms
        result["kept"] = {
            who: {how: kept(found, how) for how in FIGURES} for who, found in arms.items()
        }
        result["seconds"] = sum(seconds.values())
        result["failed"] = gate(game, result)
        protocol.write(name, result)
        failed += [f"{game}: {line}" for line in result["failed"]]
    return protocol.verdict(failed)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
