"""One student for several games: can one small network play as well as the teacher of each?

    python benchmarks/studies/multitask.py

Of each game THE teacher is the best of 16 by PPO with the game's preset. A student is one trunk
with a head a game; it acts in all games at once and is distilled from all teachers by forward KL
(Rusu et al. 2015, here with the student acting). "control" is the same network trained by PPO
without a teacher for as many environment steps. Both standardise observations by one statistic over
all games, in which MountainCar's velocity (.07 at most) nearly vanishes; "control, own statistics"
has a statistic a game, so that the teachers are not credited with what only this costs. Every game
is scored alone: 10 seeds, 1024 greedy episodes each. Writes results/studies/multitask.json and
.png.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Seeded, __doc__, __file__)

import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxkd
from benchmarks import protocol
from jaxkd import envs, losses, moments, networks, rewards
from jaxkd.base import Env, Policy
from jaxkd.cli import training
from jaxkd.returns import gae

SEED, TEACHERS, SEEDS, EPISODES, ARENA = 3, 16, 10, 1024, 256  # settings were chosen on seed 1
SETS = {
    "two": ("CartPole-v1", "Acrobot-v1"),
    "three": ("CartPole-v1", "Acrobot-v1", "MountainCar-v0"),
}
GAMES = SETS["three"]
STUDENT, CONTROL, OWN = "student", "control", "control, own statistics"
ROLES = {"two": (STUDENT, CONTROL), "three": (STUDENT, CONTROL, OWN)}
HIDDEN = (32, 32)
NUM_ENVS, UNROLL_LENGTH, UPDATES = 32, 64, 40  # environments of one game
NUM_EPOCHS, NUM_MINIBATCHES = 8, 8
LEARNING_RATE = 1e-2  # decays linearly to 0; the control's too, which did best with it as well
ENTROPY, GAMMA, LAMBDA = 0.005, 0.99, 0.95  # of the controls
KEEPS = 0.95  # of what each teacher gains over the random policy, mean over seeds


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    sets: dict[str, tuple[str, ...]] = SETS
    roles: dict[str, tuple[str, ...]] = ROLES
    teachers: int = TEACHERS
    seeds: int = SEEDS
    episodes: int = EPISODES
    arena: int = ARENA
    updates: int = UPDATES
    num_envs: int = NUM_ENVS
    unroll_length: int = UNROLL_LENGTH
    preset: dict = {}

    @property
    def games(self) -> tuple[str, ...]:
        return tuple(game for game in GAMES if any(game in names for names in self.sets.values()))


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(sets={"two": SETS["two"]}, teachers=4, seeds=3),
    "tiny": Sizes(
        sets={"two": ("CartPole-v1", "Acrobot-v1")},
        roles={"two": (STUDENT, OWN)},
        teachers=1,
        seeds=1,
        episodes=2,
        arena=2,
        updates=1,
        num_envs=8,
        unroll_length=2,
        preset=protocol.TINY_PRESET,
    ),
}


def settings(size: Sizes = SIZES["full"]) -> dict:
    """All that the result depends on, and its digest."""
    values = protocol.constants(globals(), int | float | tuple | dict | str)
    given = {game: protocol.changed(protocol.preset(game, size)) for game in GAMES}
    return protocol.digest(values | {"presets": given} | protocol.smaller(size))


def the_teachers(size: Sizes) -> tuple[dict[str, tuple[Policy, Any]], dict[str, dict], float]:
    """By game: (policy, params) of THE teacher, and figures, with the random policy's return; and
    the seconds that teaching took.
    """
    teachers, figures, seconds = {}, {}, 0.0
    for game in size.games:
        arena, p = envs.make(game, size.arena), protocol.preset(game, size)
        policy, found, _, steps = protocol.ppo_teacher(
            game, arena, SEED, size.episodes, size.teachers, p
        )
        seconds += found.seconds
        teachers[game] = policy, found.params
        figures[game] = {
            "seed": found.best,
            "return": found.score,
            "steps": steps,
            "parameters": jaxkd.actor_size(policy, found.params, arena.obs_spec),
            "random": protocol.random_return(arena, SEED, size.episodes),
        }
    return teachers, figures, seconds


def standardised_by_game(policy: Policy, env: Env) -> Policy:
    """`policy` on observations standardised by the statistics of their own game, where
    `normalise=True` has one for all.
    """
    number = len(env.tasks)

    def init(key):
        statistics = jax.tree.map(
            lambda x: jnp.stack([x] * number), moments.empty(env.obs_spec["obs"])
        )
        return {"policy": policy.init(key), "statistics": statistics}

    def through(call):
        def standardised(params, carry, obs, reset):
            own = jax.lax.stop_gradient(
                jax.tree.map(lambda x: x[obs["task"]], params["statistics"])
            )
            seen = jnp.clip((obs["obs"] - own.mean) * jax.lax.rsqrt(own.var + 1e-8), -10.0, 10.0)
            return call(params["policy"], carry, obs | {"obs": seen}, reset)

        return standardised

    def observe(params, obs):
        rows = (
            obs["obs"].reshape(len(obs["obs"]), number, env.num_envs // number, -1).swapaxes(0, 1)
        )  # [games, T, environments, O]
        return params | {"statistics": jax.vmap(moments.update)(params["statistics"], rows)}

    return policy._replace(
        init=init,
        step=through(policy.step),
        unroll=through(policy.unroll),
        observe=observe,
        description=(),
    )


def network(env: Env, role: str) -> Policy:
    """One trunk, a head a game; the value, which only the controls need, has a trunk of its own."""
    if role == OWN:
        return standardised_by_game(networks.multihead(env, HIDDEN, separate=True), env)
    return networks.multihead(env, HIDDEN, separate=True, normalise=True)


def lesson(size: Sizes, env: Env, role: str, student: Policy, teacher: Policy) -> jaxkd.Algorithm:
    """Distillation, with the KL of every game reported; for a control PPO."""
    sizes = dict(
        unroll_length=size.unroll_length, num_epochs=NUM_EPOCHS, num_minibatches=NUM_MINIBATCHES
    )
    rate = optax.linear_schedule(LEARNING_RATE, 0.0, size.updates * NUM_EPOCHS * NUM_MINIBATCHES)
    if role != STUDENT:
        sizes |= dict(rewards={"normalise": rewards.normalise(GAMMA)}, returns=gae(GAMMA, LAMBDA))
        return jaxkd.ppo(env, student, learning_rate=rate, entropy=ENTROPY, **sizes)
    terms = {
        game: losses.for_task(i, losses.forward_kl()) for i, game in enumerate(env.tasks)
    }  # their sum is the KL of all rows
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5))
    return jaxkd.distill(env, student, teacher, losses=terms, optimizer=optimizer, **sizes)


def scored(size: Sizes, env: Env, name: str, policy: Policy, params: Any, figures: dict) -> dict:
    """By game: greedy figures of every seed, playing it alone, and its share of the teacher's."""
    found = {}
    for i, game in enumerate(env.tasks):
        arena = envs.pad(envs.make(game, size.arena), like=env, task=i)
        keys = protocol.keys(SEED, f"score {name} {game}", size.seeds)
        returns, _ = protocol.score(arena, policy, params, keys, size.episodes)
        floor, ceiling = figures[game]["random"], figures[game]["return"]
        found[game] = protocol.summary(returns) | {
            "fraction_of_teacher": (returns.mean() - floor) / (ceiling - floor)
        }
    return found


def experiment(number: str, teachers: dict, figures: dict, size: Sizes) -> tuple[dict, dict, float]:
    """Figures by role and game, learning curves [updates, seeds] by (number, role, game), and
    seconds.
    """
    names = size.sets[number]
    singles = [envs.make(game, size.num_envs) for game in names]
    env = envs.concat(*singles)
    policies, params = zip(*[teachers[game] for game in names], strict=True)
    teacher = networks.concat(env, policies, singles)

    def run(role: str) -> dict:
        student, name = network(env, role), f"{role} of {number}"
        algorithm = jaxkd.lanes(lesson(size, env, role, student, teacher))
        inputs = [params] if role == STUDENT else []
        keys = protocol.keys(SEED, name, size.seeds)
        state, metrics = jaxkd.run(algorithm, keys, size.updates, *inputs)
        found = scored(size, env, name, student, state.params, figures)
        told = {"games": found, "curves": {game: metrics[f"return/{game}"] for game in names}}
        if role == STUDENT:
            one = jax.tree.map(lambda x: x[0], state.params)
            told["parameters"] = jaxkd.actor_size(student, one, env.obs_spec)
            for game in names:  # a term is 0 on the rows of the other games
                found[game]["kl"] = len(names) * float(np.mean(metrics[f"loss/{game}"][-1]))
        return told

    say = lambda found: ", ".join(f"{k} {row['mean']:.1f}" for k, row in found["games"].items())
    runs = {role: partial(run, role) for role in size.roles[number]}
    made = lambda _: settings(size)
    found, seconds = protocol.arms(f"multitask/{number}", runs, made, say)
    result: dict[str, Any] = {"steps": size.updates * size.unroll_length * env.num_envs}
    result |= {role: arm["games"] for role, arm in found.items()}
    result["parameters"] = found[STUDENT]["parameters"]
    curves = {
        (number, role, game): np.asarray(curve)
        for role, arm in found.items()
        for game, curve in arm["curves"].items()
    }
    return result, curves, sum(seconds.values())


def gate(result: dict, sets: dict = SETS) -> list[str]:
    """What does not hold; empty: passed."""
    failed = []
    for number, names in sets.items():
        for game in names:
            kept = result[number][STUDENT][game]["fraction_of_teacher"]
            if not kept >= KEEPS:
                failed.append(
                    f"the student of {number} games keeps {100 * kept:.1f} % of its teacher in "
                    f"{game}, wanted {100 * KEEPS:.0f} %"
                )
    return failed


def draw(result: dict, curves: dict, size: Sizes):
    """A row a student, a column a game: returns while learning, every seed; dashed: the game's
    teacher, acting greedily.
    """
    colours = {OWN: "tab:green", CONTROL: "tab:orange", STUDENT: "tab:blue"}
    shape = len(size.sets), len(size.games)
    figure, axes = plt.subplots(*shape, figsize=(13, 9), layout="constrained", squeeze=False)
    places = {
        (number, game): axes[row, column]
        for row, number in enumerate(size.sets)
        for column, game in enumerate(size.games)
    }
    for (number, game), axis in places.items():
        if game not in size.sets[number]:
            axis.axis("off")
            continue
        for role, colour in colours.items():
            if role not in size.roles[number]:
                continue
            curve, found = curves[number, role, game], result[number][role][game]
            steps = (1 + np.arange(len(curve))) * size.num_envs * size.unroll_length
            ended = np.isfinite(curve).any(axis=1)  # -inf before the first episode ends
            label = f"{role}: {found['mean']:.1f} ({100 * found['fraction_of_teacher']:.1f} %)"
            axis.plot(steps, curve, color=colour, alpha=0.35, lw=0.6)
            mean = training.mean(curve[ended], axis=1)
            axis.plot(steps[ended], mean, color=colour, lw=2, label=label)
        best = result["teachers"][game]["return"]
        axis.axhline(best, color="k", ls="--", lw=1, label=f"its teacher: {best:.1f}")
        axis.set(
            title=f"{game}, one student for {number} games",
            xlabel="environment steps in this game",
            ylabel="return while learning",
        )
        heading = "greedy return, alone (share of the teacher's gain)"
        axis.legend(
            title=heading,
            title_fontsize=9,
            fontsize=9,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            frameon=False,
        )
    return figure


def table(result: dict, size: Sizes) -> str:
    """The figures for a terminal."""
    lines = [
        f"{'games':7}{'game':16}{'random':>8}{'teacher':>9}  "
        f"{'':24}{'mean':>8}{'worst':>8}{'kept':>9}"
    ]
    for number, names in size.sets.items():
        for game in names:
            for role in size.roles[number]:
                teacher, found = result["teachers"][game], result[number][role][game]
                kept = 100 * found["fraction_of_teacher"]
                lines.append(
                    f"{number:7}{game:16}{teacher['random']:8.1f}{teacher['return']:9.1f}  "
                    f"{role:24}{found['mean']:8.1f}{found['worst']:8.1f}{kept:7.1f} %"
                )
        whole = sum(result["teachers"][game]["parameters"] for game in names)
        lines.append(
            f"{'':7}{result[number]['parameters']:,} parameters instead of {whole:,}; "
            f"{result[number]['steps']:,} environment steps"
        )
    return "\n".join(lines)


def main(given: frame.Seeded) -> int:
    size, curves = frame.sized(given, SIZES), {}
    teachers, figures, seconds = the_teachers(size)
    result: dict[str, Any] = {"settings": settings(size), "teachers": figures}
    for number in size.sets:
        result[number], own, spent = experiment(number, teachers, figures, size)
        curves, seconds = curves | own, seconds + spent
    result |= {"failed": gate(result, size.sets), "seconds": seconds}
    protocol.write("multitask", result, draw(result, curves, size))
    print(table(result, size), f"{seconds:.0f} s", sep="\n")
    return protocol.verdict(result["failed"])


if __name__ == "__main__":
    sys.exit(main(GIVEN))
