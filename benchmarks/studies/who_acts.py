"""Who should act while a student learns, and what if the teacher is damaged?

    python benchmarks/studies/who_acts.py                       # all games; or their names

For each game THE teacher (PPO; MinAtar: one seed of an MLP) and students of a quarter of its size,
10 seeds: td (the teacher acts, KL), sd (the student acts, KL), ppd (PPO + proximal KL),
kickstarting (PPO + KL that fades), n_distillation (with the environment's reward), and ppo without
a teacher. The same again with a damaged teacher: Gaussian noise on its actor's weights, the
smallest sigma of SIGMAS at which it keeps 30 to 60 % of its return. Students act alone: greedy, 64
episodes at each of CHECKS points of the run; score = (S - random) / (T - random) with T the
undamaged teacher. Compared by the area under that curve, because with enough updates all end near
1. Writes results/studies/who_acts/<game>.json, then results/studies/who_acts.json and .png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Study, __doc__, __file__)

import json
import sys
from functools import partial
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxkd
from benchmarks import protocol
from jaxkd import presets

GAMES = ("CartPole-v1", "Acrobot-v1", "Breakout-MinAtar")
SEED, STUDENTS, CHECKS, EPISODES = 3, 10, 10, 64
SIGMAS = tuple(
    round(0.02 * 1.15**i, 4) for i in range(40)
)  # of the noise, as a share of each array's standard deviation
KEPT = (0.3, 0.6)  # of the teacher's return, by a damaged one
ARMS = {
    "td": "teacher_distillation",
    "sd": "on_policy_distillation",
    "ppd": "proximal_policy_distillation",
    "kickstarting": "kickstarting",
    "n_distillation": "n_distillation",
}
STEPS = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 100_000,
    "Breakout-MinAtar": 500_000,
}  # of a student, at most: CHECKS may not divide its updates
RECOVERS, COPIES = (
    0.15,
    0.12,
)  # of the original score: ppd ends so much above the damaged teacher; td at most so much


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    games: tuple[str, ...] = GAMES
    arms: tuple[str, ...] = tuple(ARMS)
    teachers: int = 16  # one in MinAtar
    students: int = STUDENTS
    checks: int = CHECKS  # of a student while it learns
    episodes: int = EPISODES  # of a check
    judged: int = 1024  # episodes of a teacher
    kept: tuple[float, float] = KEPT
    steps: int | None = None  # of a student, default the game's
    preset: dict = {}


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(games=("CartPole-v1",), teachers=4, students=3),
    "tiny": Sizes(
        games=("CartPole-v1",),
        arms=("td", "sd", "ppd"),
        teachers=1,
        students=1,
        checks=2,
        episodes=2,
        judged=2,
        kept=(-np.inf, np.inf),
        steps=64,
        preset=protocol.TINY_PRESET,
    ),
}


def row(name: str, size: Sizes) -> presets.Preset:
    """The game's preset, for students; MinAtar by an MLP."""
    p = protocol.earlier(name, size)
    return (p._replace(channels=(), hidden=(128, 128)) if p.channels else p)._replace(
        student_steps=size.steps or STEPS[name]
    )


def damaged(params, key, sigma):
    """Noise on every array of the actor, of `sigma` times its standard deviation."""
    leaves, structure = jax.tree.flatten(params)
    names = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    noise = [
        sigma * x.std() * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    kept = [("critic" in n) or ("value" in n) or ("statistics" in n) for n in names]
    return jax.tree.unflatten(
        structure,
        [x if keep else x + more for x, more, keep in zip(leaves, noise, kept, strict=True)],
    )


def damage(
    arena, policy, params, floor: float, full: float, size: Sizes
) -> tuple[float, float, object]:
    """(sigma, fraction kept, params) of the damaged teacher."""
    key = jax.random.key(SEED)
    for sigma in SIGMAS:
        worse = damaged(params, key, sigma)
        returns = protocol.score(
            arena,
            policy,
            jax.tree.map(lambda x: x[None], worse),
            protocol.keys(SEED, "damaged", 1),
            size.judged,
        )[0]
        kept = float((returns[0] - floor) / (full - floor))
        if size.kept[0] <= kept <= size.kept[1]:
            return sigma, kept, worse
    raise SystemExit(
        "no sigma damages this teacher to between 30 and 60 % of its return: refine SIGMAS."
    )


def curves(
    size: Sizes, arena, student, algorithm, num_updates: int, role: str, *inputs
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy returns [seed, checks], and sampled ones at the end [seed]."""

    def one(key):
        state, greedy = protocol.learning_curve(
            arena, student, algorithm, num_updates, size.checks, key, *inputs
        )
        sampled = jaxkd.evaluate(
            arena,
            student,
            state.params,
            jax.random.fold_in(key, 2),
            num_episodes=size.episodes,
            greedy=False,
        )
        return greedy, sampled.returns.mean()

    greedy, sampled = jax.jit(jax.vmap(one))(protocol.keys(SEED, role, size.students))
    return np.asarray(greedy, np.float64), np.asarray(sampled, np.float64)


def experiment(name: str, size: Sizes) -> dict:
    p = row(name, size)
    env, arena = presets.make_env(name, p), jaxkd.envs.make(name, size.episodes)
    judge = jaxkd.envs.make(name, min(256, size.judged))
    number = 1 if "MinAtar" in name else size.teachers
    teacher, best, *_ = protocol.ppo_teacher(name, judge, SEED, size.judged, number, p)
    floor, full = protocol.random_return(arena, SEED, size.judged), best.score
    sigma, kept, worse = damage(judge, teacher, best.params, floor, full, size)
    parameters = jaxkd.actor_size(teacher, best.params, env.obs_spec)
    student = presets.student_network(env, p, "auto:1/4", parameters)
    result = dict(teacher=full, random=floor, sigma=sigma, kept=kept, parameters=parameters)
    print(f"{name}: teacher {full:.2f}, random {floor:.2f}, damaged by {sigma}: {kept:.2f}")

    def run(label: str, make, *inputs) -> dict:
        greedy, sampled = (
            (x - floor) / (full - floor)
            for x in curves(size, arena, student, *make(), label, *inputs)
        )
        found = {"area": greedy.mean(1), "last": greedy[:, -1]}
        return found | {"curve": greedy, "sampled": sampled}

    runs = {"ppo": partial(run, "ppo", partial(presets.teaching, env, student, p, p.student_steps))}
    for arm in size.arms:
        make = partial(presets.distillation, env, student, teacher, p, ARMS[arm])
        for label, params in ((arm, best.params), (f"{arm} damaged", worse)):
            runs[label] = partial(run, label, make, params)
    result["arms"], seconds = protocol.arms(
        f"who_acts/{name}", runs, lambda _: settings(size), told
    )
    return result | {"seconds": best.seconds + sum(seconds.values())}


def told(found: dict) -> str:
    """One arm's line."""
    return ", ".join(f"{what} {np.mean(found[what]):.3f}" for what in ("area", "last", "sampled"))


def means(results: dict, label: str, what: str = "area") -> np.ndarray:
    """Geometric mean over games [seed], of scores not below .01."""
    return np.exp(
        np.mean(
            [np.log(np.maximum(r["arms"][label][what], 0.01)) for r in results.values()], axis=0
        )
    )


def compare(results: dict) -> dict:
    ran = next(iter(results.values()))["arms"]
    arms = [arm for arm in ARMS if arm in ran]
    labels = ("ppo", *arms, *(f"{arm} damaged" for arm in arms))
    found = {label: means(results, label).mean() for label in labels}
    gain = means(results, "sd") - means(results, "td")
    found |= {"sd - td": gain.mean(), "sd - td interval": jaxkd.interval(gain, statistic=np.mean)}
    for arm in arms:
        found[f"{arm} - damaged teacher"] = {
            name: np.mean(r["arms"][f"{arm} damaged"]["last"]) - r["kept"]
            for name, r in results.items()
        }
    return found


def gate(found: dict) -> list[str]:
    """What does not hold; empty: passed."""
    failed = []
    if found["sd - td interval"][0] <= 0:
        failed.append(
            f"P7: student-driven minus teacher-driven {found['sd - td']:.3f} "
            f"{np.round(found['sd - td interval'], 3)}, wanted above 0"
        )
    if not found["ppd"] >= found["sd"] >= found["td"]:
        failed.append(
            f"P8: ppd {found['ppd']:.3f} >= sd {found['sd']:.3f} >= td {found['td']:.3f} does not "
            "hold"
        )
    for name, gain in found["ppd - damaged teacher"].items():
        if gain < RECOVERS:
            failed.append(
                f"P8: {name}: ppd ends {gain:+.3f} from the damaged teacher, wanted {RECOVERS:+}"
            )
    for name, gain in found["td - damaged teacher"].items():
        if gain > COPIES:
            failed.append(
                f"P8: {name}: td ends {gain:+.3f} from the damaged teacher, wanted at most "
                f"{COPIES:+}"
            )
    return failed


def draw(results: dict, size: Sizes):
    figure, axes = plt.subplots(
        2, len(results), figsize=(4.2 * len(results), 6.4), layout="constrained", squeeze=False
    )
    colours = dict(
        zip(
            ("ppo", *ARMS),
            ("tab:gray", "tab:red", "tab:blue", "tab:green", "tab:purple", "tab:orange"),
            strict=True,
        )
    )
    for (name, r), column in zip(results.items(), axes.T, strict=True):
        p = row(name, size)
        steps = protocol.steps_of_checks(p, presets.updates(p, p.student_steps), size.checks)
        for axis, suffix, title in zip(
            column, ("", " damaged"), (name, f"{name}, damaged teacher"), strict=True
        ):
            for arm, colour in colours.items():
                if arm not in r["arms"]:
                    continue
                curve = np.asarray(r["arms"][arm if arm == "ppo" else arm + suffix]["curve"])
                axis.plot(steps, curve.T, color=colour, alpha=0.15, lw=0.6)
                axis.plot(steps, curve.mean(0), color=colour, label=arm)
            axis.axhline(1.0 if not suffix else r["kept"], color="k", ls="--", lw=0.8)
            axis.set(
                title=title, xlabel="environment steps", ylabel="fraction of the undamaged teacher"
            )
    axes[0, 0].legend(fontsize=7)
    return figure


def settings(size: Sizes = SIZES["full"]) -> dict:
    values = protocol.constants(globals(), int | float | tuple | dict)
    given = {name: protocol.changed(protocol.earlier(name, size)) for name in GAMES}
    return protocol.digest(values | {"presets": given} | protocol.smaller(size))


def main(given: frame.Study) -> int:
    size = frame.sized(given, SIZES, "students")

    def judge(results: dict[str, dict]) -> dict:
        found = compare(results)
        found |= {"failed": gate(found)}
        print(json.dumps(found, indent=1, default=float))
        return found

    return protocol.over_games("who_acts", given, size, experiment, settings(size), judge, draw)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
