"""A Q-learning teacher, and which loss takes most from it: the order of losses, the temperature,
logit standardisation.

    python benchmarks/studies/q_teacher.py                     # all games; or their names

For each game 16 PQN teachers (gate: mean greedy return over 1024 episodes); the best is THE
teacher. Students of its size learn from the same data (the teacher acts, epsilon .05) for UPDATES
updates: KL to softmax(Q / tau) for nine tau, negative log-likelihood of its actions, squared error
on Q, and KL of standardised logits. Every CHECK updates each student acts alone, greedy, for 32
episodes; its score is the fraction of the teacher, (S - random) / (T - random), averaged over those
checks: the area under the curve, because all end near 1. tau is chosen on the first 5 of 15 seeds
and compared on the other 10; means over games are geometric, of scores not below .01. Writes
results/studies/q_teacher/<game>.json, then results/studies/q_teacher.json and .png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Study, __doc__, __file__)

import json
import sys
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxkd
from benchmarks import protocol
from jaxkd import behavior, losses, networks, presets
from jaxkd.cli import training

GAMES = ("CartPole-v1", "Acrobot-v1", "Catch-bsuite")
GATES = {"CartPole-v1": 490, "Acrobot-v1": -100, "Catch-bsuite": 0.99}  # mean of 16 teachers
# Seed 3 was seen by a gate that failed (CartPole: epsilon to .05, teachers 472, worst 209), 1 and 2
# by the choice of settings.
SEED, TEACHERS, EPISODES, CHOOSING, STUDENTS = 4, 16, 1024, 5, 15
UPDATES, CHECK, CHECKED_EPISODES, LEARNING_RATE, EPSILON = 30, 3, 32, 1e-3, 0.05
TAUS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
STANDARDISED = (0.25, 0.5, 1.0)


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    games: tuple[str, ...] = GAMES
    teachers: int = TEACHERS
    teacher_steps: int = 500_000
    hidden: tuple[int, ...] = (128, 128)
    students: int = STUDENTS
    episodes: int = EPISODES  # of a teacher
    updates: int = UPDATES
    check: int = CHECK
    checked_episodes: int = CHECKED_EPISODES
    preset: dict = {}

    @property
    def choosing(self) -> int:
        """The seeds that tau is chosen on: a third, another than those it is compared on."""
        return max(1, round(self.students * CHOOSING / STUDENTS))


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(games=("Catch-bsuite",), teachers=4, students=6),
    "tiny": Sizes(
        games=("Catch-bsuite",),
        teachers=4,
        teacher_steps=32,
        hidden=(4,),
        students=2,
        episodes=16,
        updates=2,
        check=1,
        checked_episodes=2,
        preset=protocol.TINY_PRESET,
    ),
}


def arms(teacher) -> dict:
    """(losses, teacher) by name, of a temperature that the last two ignore."""
    return {
        "kl": lambda tau: (losses.forward_kl(), networks.temper(teacher, tau)),
        "standardised": lambda tau: (losses.standardised_kl(tau), teacher),
        "nll": lambda tau: (losses.nll(), teacher),
        "mse": lambda tau: (losses.logit_mse(), teacher),
    }


def curve(size: Sizes, env, student, build, params, key, tau):
    """Greedy returns of one student at every check, [updates / check]."""
    arena = jaxkd.envs.make(env.name, size.checked_episodes)
    term, teacher = build(tau)
    acting = behavior.epsilon_greedy(EPSILON, behavior.teacher_acts(greedy=True))
    kd = jaxkd.distill(
        env,
        student,
        teacher,
        losses={"kd": term},
        behavior=acting,
        optimizer=optax.adam(LEARNING_RATE, eps=1e-5),
    )

    checks = size.updates // size.check
    return protocol.learning_curve(arena, student, kd, size.updates, checks, key, params)[1]


def action_gap(env, teacher, params, key) -> float:
    """Mean of the largest minus the second largest Q over the states that the teacher visits."""
    acting = jaxkd.distill(
        env,
        teacher,
        teacher,
        losses={"gap": losses.watch(_gap)},
        optimizer=optax.sgd(0.0),
        num_minibatches=1,
    )
    step = lambda state, _: acting.step(state, params)
    measure = jax.jit(
        lambda key: jax.lax.scan(step, acting.init(key)._replace(params=params), length=10)[1][
            "loss/gap"
        ].mean()
    )
    return float(measure(key))


def _gap(student, batch):
    best = jnp.sort(batch.teacher.policy.logits, axis=-1)
    return best[..., -1] - best[..., -2]


def taught(env, network, p, arena, size: Sizes) -> dict:
    """THE teacher and the learning curve of all."""
    algorithm, updates = presets.q_teaching(env, network, p, size.teacher_steps)
    keys = protocol.keys(SEED, "q teacher", size.teachers)
    state, metrics = jaxkd.run(jaxkd.lanes(algorithm), keys, updates)
    best = protocol.the_teacher(arena, network, state.params, SEED, size.episodes)
    return {"teacher": protocol.as_lists(best), "curve": metrics["return"]}


def experiment(name: str, size: Sizes) -> dict:
    """Everything about one game."""
    p, made = protocol.preset(name, size), lambda _: settings(size)
    env, arena = presets.make_env(name, p), jaxkd.envs.make(name, min(256, size.episodes))
    network = presets.q_network(env, p, size.hidden)
    teach = partial(taught, env, network, p, arena, size)
    say = lambda found: f"mean {np.mean(found['teacher']['returns']):.2f}"
    one, spent = protocol.arms(f"q_teacher/teacher {name}", {"pqn": teach}, made, say)
    best = protocol.as_teacher(network, one["pqn"]["teacher"], spent["pqn"])
    floor = protocol.random_return(arena, SEED, size.episodes)
    teacher = networks.q(network)
    result = {"teacher": protocol.summary(best.returns), "the_teacher": best.score, "random": floor}
    result["learning"] = training.mean(one["pqn"]["curve"], axis=1).tolist()
    keys = protocol.keys(SEED, "student", size.students)

    def run(build, taus: tuple[float, ...]) -> np.ndarray:
        single = partial(curve, size, env, network, build, best.params)
        over_seeds = jax.vmap(single, in_axes=(0, None))
        returns = jax.jit(jax.vmap(over_seeds, in_axes=(None, 0)))(keys, jnp.asarray(taus))
        return (np.asarray(returns, np.float64) - floor) / (
            best.score - floor
        )  # [tau, seed, check]

    many = {"kl": TAUS, "standardised": STANDARDISED if env.action_space.n > 2 else ()}
    taus = {arm: many.get(arm, (1.0,)) for arm in arms(teacher)}
    runs = {
        arm: partial(run, build, taus[arm]) for arm, build in arms(teacher).items() if taus[arm]
    }
    found, seconds = protocol.arms(f"q_teacher/{name}", runs, made, told)
    result["scores"] = {}
    for arm, fractions in found.items():
        for tau, rows in zip(taus[arm], np.asarray(fractions), strict=True):
            label = f"{arm} {tau:g}" if len(taus[arm]) > 1 else arm
            result["scores"][label] = {
                "area": rows.mean(-1).tolist(),
                "last": rows[:, -1].tolist(),
                "curve": rows.mean(0).tolist(),
            }
    result["gap"] = action_gap(env, teacher, best.params, jax.random.key(SEED))
    return result | {"seconds": best.seconds + sum(seconds.values())}


def told(fractions: list) -> str:
    """One arm's line: the area of every tau."""
    return "area " + " ".join(f"{area:.3f}" for area in np.mean(fractions, axis=(1, 2)))


def areas(result: dict, label: str) -> np.ndarray:
    return np.asarray(result["scores"][label]["area"])


def compare(results: dict, size: Sizes = SIZES["full"]) -> dict:
    """Over the games: the order of losses, the temperature, standardisation; tau chosen on the
    first seeds, all compared on the others.
    """

    def mean(values) -> float:
        return float(np.exp(np.log(np.maximum(list(values), 0.01)).mean()))

    first = {
        name: [areas(r, f"kl {tau:g}")[: size.choosing].mean() for tau in TAUS]
        for name, r in results.items()
    }
    chosen = {name: TAUS[int(np.argmax(row))] for name, row in first.items()}
    common = TAUS[int(np.argmax([mean(row) for row in zip(*first.values(), strict=True)]))]
    at = lambda name, tau: areas(results[name], f"kl {tau:g}")[size.choosing :].mean()
    found = {"chosen": chosen, "common": common}
    found["kl"] = mean(at(name, chosen[name]) for name in results)
    found["kl_common"] = mean(at(name, common) for name in results)
    for label in ("nll", "mse"):
        found[label] = mean(areas(r, label)[size.choosing :].mean() for r in results.values())
    # A multiple of the mean action gap instead of a constant: the curve over log tau, read between
    # its points.
    read = lambda name, row, tau: np.interp(np.log(tau), np.log(TAUS[::-1]), row[::-1])
    multiples = np.exp(np.linspace(np.log(0.001), np.log(30.0), 60))
    scored = [
        mean(read(name, first[name], m * results[name]["gap"]) for name in results)
        for m in multiples
    ]
    multiple = float(multiples[int(np.argmax(scored))])
    rest = {name: [at(name, tau) for tau in TAUS] for name in results}
    found |= {
        "multiple": multiple,
        "kl_multiple": mean(
            read(name, rest[name], multiple * results[name]["gap"]) for name in results
        ),
    }
    many = [
        name for name in results if f"standardised {STANDARDISED[0]:g}" in results[name]["scores"]
    ]
    found["standardised"] = {
        f"{t:g}": mean(
            areas(results[n], f"standardised {t:g}")[size.choosing :].mean() for n in many
        )
        for t in STANDARDISED
    }
    found["kl_of_these"] = mean(at(name, chosen[name]) for name in many)
    return found


def gate(results: dict, found: dict) -> list[str]:
    """What does not hold; empty: passed."""
    failed = []
    for name, r in results.items():
        if r["teacher"]["mean"] < GATES[name]:
            failed.append(f"{name}: teachers {r['teacher']['mean']:.2f}, wanted {GATES[name]}")
    if found["kl"] < found["mse"]:
        failed.append(f"KL {found['kl']:.3f} below MSE {found['mse']:.3f}")
    if not max(found["chosen"].values()) < 1:
        failed.append(f"best tau {found['chosen']}, wanted below 1")
    if max(found["standardised"].values()) < found["kl_of_these"] - 0.02:
        failed.append(
            f"standardised {found['standardised']}, wanted within .02 of KL "
            f"{found['kl_of_these']:.3f}"
        )
    return failed


def draw(results: dict, size: Sizes):
    figure, axes = plt.subplots(
        2, len(results), figsize=(4.2 * len(results), 6.4), layout="constrained", squeeze=False
    )
    for name, (above, below) in zip(results, axes.T, strict=True):
        rows = np.stack([areas(results[name], f"kl {tau:g}") for tau in TAUS])
        above.semilogx(TAUS, rows, color="tab:blue", alpha=0.2, lw=0.7)
        above.semilogx(
            TAUS, rows.mean(1), color="tab:blue", marker="o", label="KL to softmax(Q / tau)"
        )
        for label, colour in (("nll", "tab:green"), ("mse", "tab:red")):
            above.axhline(areas(results[name], label).mean(), color=colour, ls="--", label=label)
        above.axvline(results[name]["gap"], color="k", ls=":", label="mean action gap")
        above.set(title=name, xlabel="tau", ylabel="area under fraction of teacher")
        best = TAUS[int(rows.mean(1).argmax())]
        steps = size.check * (1 + np.arange(size.updates // size.check))
        shown = [
            f"kl {best:g}",
            "nll",
            "mse",
            *[k for k in results[name]["scores"] if k.startswith("standardised")],
        ]
        for label in shown:
            below.plot(steps, results[name]["scores"][label]["curve"], marker=".", label=label)
        below.set(xlabel="update", ylabel="fraction of teacher, greedy")
        above.legend(fontsize=7)
        below.legend(fontsize=7)
    return figure


def settings(size: Sizes = SIZES["full"]) -> dict:
    values = protocol.constants(globals(), int | float | tuple)
    given = {name: protocol.changed(protocol.preset(name, size)) for name in GAMES}
    return protocol.digest(values | {"presets": given} | protocol.smaller(size))


def main(given: frame.Study) -> int:
    size = frame.sized(given, SIZES, "students")

    def judge(results: dict[str, dict]) -> dict:
        found = compare(results, size)
        found |= {"failed": gate(results, found)}
        print(json.dumps(found, indent=1, default=float))
        return found

    return protocol.over_games("q_teacher", given, size, experiment, settings(size), judge, draw)


if __name__ == "__main__":
    sys.exit(main(GIVEN))
