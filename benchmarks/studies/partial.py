"""A teacher that sees everything, students that see part of it: a memory makes up for what is
hidden.

    python benchmarks/studies/partial.py

MemoryChain: the observation shows a cue in the first two of 31 steps, and the last action must name
it (+1, else -1); the teacher is shown the cue in every step. CartPole: the teacher sees the state,
the students no velocities. Both teachers are PPO's. The students, an LSTM, a GRU and an MLP of the
LSTM's size, are distilled by forward KL while they act, and are scored alone and greedily where
only their part is shown. "control" is the LSTM trained by PPO without a teacher for as many
environment steps, with a learning rate of its own; "control x4" had four times the steps. 10 seeds
of one teacher, 1024 episodes each. Writes results/studies/partial.json and .png.

What is earned while learning lags behind in CartPole: 12 updates are 768 steps of each environment,
little more than one long episode.
"""

from benchmarks import frame

if __name__ == "__main__":  # before jax is imported: --help answers at once
    GIVEN = frame.start(frame.Seeded, __doc__, __file__)

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from gymnax.environments.bsuite.memory_chain import MemoryChain

import jaxkd
from benchmarks import protocol
from jaxkd import envs, losses, networks, rewards
from jaxkd.base import Algorithm, Env, Policy

SEED, SEEDS, EPISODES, ARENA = 3, 10, 1024, 256  # 1 was seen by the choice of settings
CHAIN, POLE, LENGTH = "MemoryChain-bsuite", "CartPole-v1", 30  # the cue is asked for in step 31
NUM_ENVS, NUM_EPOCHS, NUM_MINIBATCHES, UPDATES, LONGER = 64, 4, 4, 12, 4
TEACHERS, CUE_UPDATES, CUE_HIDDEN = (
    4,
    20,
    (8,),
)  # the best of four; those of the cue are made here, CartPole's by its preset


class Settings(NamedTuple):
    """Of one experiment. Learning rates decay linearly to 0."""

    unroll_length: int  # also the length of a recurrent student's sequences
    hidden: int  # width of the dense layer and of the cell
    mlp: tuple[int, ...]  # hidden layers that make an actor of about the LSTM's size
    learning_rate: float  # of distillation
    control_rate: float  # of PPO


EXPERIMENTS = {
    CHAIN: Settings(2 * (LENGTH + 1), 16, (44, 44), 1e-2, 1e-2),
    POLE: Settings(64, 32, (90, 90), 1e-2, 2e-2),
}
# Within what the mean over seeds must lie.
BOUNDS = {
    CHAIN: {"teacher": (0.95, np.inf), "lstm": (0.95, np.inf), "mlp": (-0.05, 0.05)},
    POLE: {"teacher": (475, np.inf), "lstm": (475, np.inf), "mlp": (-np.inf, 250)},
}
UNITS = {CHAIN: "mean return, in [-1, 1]", POLE: "steps upright, up to 500"}
COLOURS = {
    "lstm": "tab:blue",
    "gru": "tab:green",
    "mlp": "tab:red",
    "control": "tab:orange",
    f"control x{LONGER}": "tab:brown",
}


class Sizes(NamedTuple):
    """What a smaller run has less of."""

    names: tuple[str, ...] = tuple(EXPERIMENTS)
    roles: tuple[str, ...] = tuple(COLOURS)
    teachers: int = TEACHERS
    seeds: int = SEEDS
    episodes: int = EPISODES
    arena: int = ARENA
    updates: int = UPDATES
    cue_updates: int = CUE_UPDATES
    num_envs: int = NUM_ENVS
    length: int = LENGTH  # of the chain
    unroll_length: int | None = None  # default the experiment's
    preset: dict = {}


SIZES = {
    "full": Sizes(),
    "cpu": Sizes(names=(CHAIN,), teachers=2, seeds=3),
    "tiny": Sizes(
        roles=("lstm", "control"),
        teachers=1,
        seeds=1,
        episodes=2,
        arena=2,
        updates=2,
        cue_updates=1,
        num_envs=4,
        length=4,
        unroll_length=16,
        preset=protocol.TINY_PRESET,
    ),
}


class Privileged(MemoryChain):
    """MemoryChain that shows two fields: what it always shows, and the cue in every step."""

    def get_obs(self, state, params, key=None):
        return {
            "blind": super().get_obs(state, params, key),
            "all": 2 * state.context.astype(jnp.float32) - 1,
        }


def chain(made: Any, num_envs: int, length: int) -> Env:
    return envs.make(made, num_envs, memory_length=length, max_steps=length + 1)


def positions(obs):
    return obs[jnp.array([0, 2])]


def both(name: str, num_envs: int, size: Sizes) -> Env:
    """Two fields: "all" for the teacher, "blind" for the student."""
    if name == CHAIN:
        return chain(Privileged(), num_envs, size.length)
    return envs.view(envs.make(name, num_envs), blind=positions, all=lambda obs: obs)


def alone(name: str, num_envs: int, size: Sizes) -> Env:
    """The environment as it comes, with nothing but the student's field."""
    if name == CHAIN:
        return envs.view(chain(name, num_envs, size.length), blind=lambda obs: obs)
    return envs.view(envs.make(name, num_envs), blind=positions)


def settings(size: Sizes = SIZES["full"]) -> dict:
    """All that the results depend on, and their digest."""
    values = protocol.constants(globals(), int | tuple)
    values |= {k: v._asdict() for k, v in EXPERIMENTS.items()}
    given = {"preset": protocol.changed(protocol.preset(POLE, size))}
    return protocol.digest(values | given | protocol.smaller(size))


def settings_of(name: str, size: Sizes) -> Settings:
    """Of one experiment."""
    chosen = EXPERIMENTS[name]
    return chosen._replace(unroll_length=size.unroll_length or chosen.unroll_length)


def the_teacher(name: str, size: Sizes) -> tuple[Policy, protocol.Teacher]:
    """Of the field "all", and its figures."""
    if name == POLE:
        p, arena = protocol.preset(name, size), envs.make(name, size.arena)
        policy, found, *_ = protocol.ppo_teacher(name, arena, SEED, size.episodes, size.teachers, p)
        return networks.select(policy, "all"), found
    env = both(name, size.num_envs, size)
    policy = networks.mlp(env, CUE_HIDDEN, separate=True, select="all")

    def teach() -> dict:
        ppo = jaxkd.ppo(env, policy, unroll_length=settings_of(name, size).unroll_length)
        keys = protocol.keys(SEED, "teacher", size.teachers)
        state, _ = jaxkd.run(jaxkd.lanes(ppo), keys, size.cue_updates)
        arena = both(name, size.arena, size)
        return protocol.as_lists(
            protocol.the_teacher(arena, policy, state.params, SEED, size.episodes)
        )

    made = lambda _: settings(size)
    found, seconds = protocol.arms("partial/teacher of the cue", {"ppo": teach}, made)
    return policy, protocol.as_teacher(policy, found["ppo"], seconds["ppo"])


def network(env: Env, role: str, chosen: Settings) -> Policy:
    """The student's, or the control's."""
    if role == "mlp":
        return networks.mlp(env, chosen.mlp, separate=True, select="blind")
    cell = networks.gru if role == "gru" else networks.lstm
    return cell(env, (chosen.hidden,), select="blind")


def phase(
    env: Env, role: str, student: Policy, teacher: Policy, chosen: Settings, updates: int
) -> tuple[Algorithm, int]:
    """Distillation, or PPO of a control, and its number of updates."""
    updates *= LONGER if role.endswith(f"x{LONGER}") else 1
    sizes: dict[str, Any] = dict(
        unroll_length=chosen.unroll_length, num_epochs=NUM_EPOCHS, num_minibatches=NUM_MINIBATCHES
    )
    rate = chosen.control_rate if role.startswith("control") else chosen.learning_rate
    rate = optax.linear_schedule(rate, 0.0, updates * NUM_EPOCHS * NUM_MINIBATCHES)
    if role.startswith("control"):
        return jaxkd.ppo(
            env,
            student,
            learning_rate=rate,
            rewards={"normalise": rewards.normalise(0.99)},
            **sizes,
        ), updates
    adam = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5))
    return jaxkd.distill(
        env, student, teacher, losses={"kl": losses.forward_kl()}, optimizer=adam, **sizes
    ), updates


def experiment(name: str, size: Sizes) -> tuple[dict, dict[str, np.ndarray]]:
    """Figures of the teacher and by role; the returns while learning [updates, seeds] by role."""
    chosen = settings_of(name, size)
    env, arena = both(name, size.num_envs, size), alone(name, size.arena, size)
    teacher, best = the_teacher(name, size)

    def run(role: str) -> dict:
        student = network(env, role, chosen)
        algorithm, updates = phase(env, role, student, teacher, chosen, size.updates)
        inputs = () if role.startswith("control") else (best.params,)
        keys = protocol.keys(SEED, role, size.seeds)
        state, metrics = jaxkd.run(jaxkd.lanes(algorithm), keys, updates, *inputs)
        keys = protocol.keys(SEED, f"score {role}", size.seeds)
        returns, _ = protocol.score(arena, student, state.params, keys, size.episodes)
        one = jax.tree.map(lambda x: x[0], state.params)
        figures = protocol.summary(returns) | {
            "steps": updates * size.num_envs * chosen.unroll_length,
            "parameters": jaxkd.actor_size(student, one, env.obs_spec),
        }
        return {"figures": figures, "curve": metrics["return"]}

    runs = {role: functools.partial(run, role) for role in size.roles}
    say = lambda found: f"{found['figures']['mean']:.2f}"
    found, seconds = protocol.arms(f"partial/{name}", runs, lambda _: settings(size), say)
    result: dict[str, Any] = {"teacher": {"mean": best.score, "seed": best.best}}
    result |= {role: arm["figures"] for role, arm in found.items()}
    curves = {role: np.asarray(arm["curve"]) for role, arm in found.items()}
    return result | {"seconds": best.seconds + sum(seconds.values())}, curves


def gate(result: dict) -> list[str]:
    """What does not hold; empty: passed."""
    found = (
        (name, role, result["experiments"][name][role]["mean"], *bound)
        for name in result["experiments"]
        for role, bound in BOUNDS[name].items()
        if role in result["experiments"][name]
    )
    return [
        f"{name}: {role} {mean:.3f}, wanted in [{low}, {high}]"
        for name, role, mean, low, high in found
        if not low <= mean <= high
    ]


def table(name: str, rows: dict, size: Sizes) -> None:
    """Prints one experiment."""
    print(
        f"\n{name}, {UNITS[name]}: the teacher {rows['teacher']['mean']:.2f}, "
        f"{rows['seconds']:.0f} s"
    )
    print(f"  {'':12}{'mean':>8}{'worst':>8}{'IQM [95 % interval]':>26}{'steps':>10}{'actor':>8}")
    for role in size.roles:
        row = rows[role]
        iqm = f"{row['iqm']:.2f} [{row['interval'][0]:.2f}, {row['interval'][1]:.2f}]"
        print(
            f"  {role:12}{row['mean']:8.2f}{row['worst']:8.2f}{iqm:>26}{row['steps']:10,}"
            f"{row['parameters']:8,}",
            flush=True,
        )


def draw(axes, name: str, rows: dict, curves: dict[str, np.ndarray]) -> None:
    """Above what was earned while learning, below the greedy scores; every seed visible; dashed:
    the teacher.
    """
    above, below = axes
    for place, (role, colour) in enumerate((role, COLOURS[role]) for role in curves):
        steps = rows[role]["steps"] * (1 + np.arange(len(curves[role]))) / len(curves[role])
        above.plot(steps, curves[role], color=colour, alpha=0.25, lw=0.7)
        above.plot(steps, curves[role].mean(axis=1), color=colour, lw=1.8, label=role)
        below.bar(place, rows[role]["mean"], color=colour, alpha=0.5)
        apart = np.linspace(-0.25, 0.25, len(rows[role]["seeds"]))
        below.plot(place + apart, rows[role]["seeds"], "k.", ms=4)
        below.annotate(
            f"{rows[role]['mean']:.2f}",
            (place, max(rows[role]["seeds"])),
            (0, 4),
            textcoords="offset points",
            ha="center",
        )
    for axis in axes:
        axis.axhline(rows["teacher"]["mean"], color="k", ls="--", lw=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    above.set(
        xscale="log",
        xlabel="environment steps",
        title=name,
        ylabel="last episode of every environment, sampled",
    )
    above.legend(fontsize=9, loc="upper left")
    below.set(
        xticks=range(len(curves)), xticklabels=curves, ylabel=f"alone, greedy:\n{UNITS[name]}"
    )
    below.margins(y=0.12)


def main(given: frame.Seeded) -> int:
    size, found = frame.sized(given, SIZES), {}
    shape = 2, len(size.names)
    figure, axes = plt.subplots(*shape, figsize=(12, 8), layout="constrained", squeeze=False)
    for name, column in zip(size.names, axes.T, strict=True):
        found[name], curves = experiment(name, size)
        table(name, found[name], size)
        draw(column, name, found[name], curves)
    seconds = sum(rows["seconds"] for rows in found.values())
    result: dict[str, Any] = {"settings": settings(size), "experiments": found, "seconds": seconds}
    result["failed"] = gate(result)
    protocol.write("partial", result, figure)
    print(f"\n{seconds:.0f} s")
    return protocol.verdict(result["failed"])


if __name__ == "__main__":
    sys.exit(main(GIVEN))
