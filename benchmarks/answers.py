"""What the committed JSON files say, in sentences: tables.py puts them into the texts."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

import jaxkd

RESULTS = Path(__file__).parent / "results"


def read(name: str) -> dict:
    """One committed file, "studies/partial"."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def spread(middle: float, interval: Sequence[float], digits: int = 1) -> str:
    """A figure and its 95 % interval, "246.9 [174.0, 325.1]"; "500.0" where they are one."""
    figure, low, high = (f"{value:.{digits}f}" for value in (middle, *interval))
    return figure if low == high else f"{figure} [{low}, {high}]"


def mean(row: dict, digits: int = 1) -> str:
    """The mean over seeds with its bootstrap interval."""
    interval = jaxkd.interval(row["seeds"], statistic=np.mean)
    return spread(np.mean(row["seeds"]).item(), interval, digits)


def join(values: Iterable, template: str = "{:.2f}", between: str = ", ") -> str:
    """The values in a row, each by the template."""
    return between.join(template.format(value) for value in values)


def fastest(what: str, num_envs: int, seeds: int) -> str:
    """Millions of steps a second on the accelerator."""
    for entry in read("speed/accelerator")["rows"][what]["entries"]:
        if (entry["num_envs"], entry["seeds"]) == (num_envs, seeds):
            return f"{entry['steps_per_second'] / 1e6:.3g}"
    raise KeyError(f"{what}: {num_envs} environments, {seeds} seeds")


# --- questions: (script, question, answer) --------------------------------------------------------


def of_sight() -> Iterator[tuple]:
    pole, chain = (
        read("studies/partial")["experiments"][name]
        for name in ("CartPole-v1", "MemoryChain-bsuite")
    )
    yield (
        "partial.py",
        "a student that cannot see CartPole's velocities?",
        f"LSTM {mean(pole['lstm'])}, MLP {mean(pole['mlp'])}; the LSTM by PPO without a teacher "
        f"{mean(pole['control'])}, in four times the steps {mean(pole['control x4'])}",
    )
    yield (
        "partial.py",
        "one that must remember a cue for 30 steps?",
        f"LSTM {mean(chain['lstm'], 2)}, MLP {mean(chain['mlp'], 2)}",
    )


def of_several_games() -> Iterator[tuple]:
    found = read("studies/multitask")
    games = [
        f"{game.split('-')[0]} {mean(row)} (its teacher {found['teachers'][game]['return']:.1f})"
        for game, row in found["three"]["student"].items()
    ]
    yield "multitask.py", "one student for three games?", ", ".join(games)


def of_q_teachers() -> Iterator[tuple]:
    teachers = [
        f"{game.split('-')[0]} {mean(read(f'studies/q_teacher/{game}')['teacher'])}"
        for game in ("CartPole-v1", "Acrobot-v1", "Catch-bsuite")
    ]
    yield "q_teacher.py", "a Q-learning teacher?", f"16 seeds: {', '.join(teachers)}"
    found = read("studies/q_teacher")
    yield (
        "q_teacher.py",
        "which loss learns fastest from it?",
        f"mean share of the teacher while learning: KL {found['kl']:.2f}, its mode "
        f"{found['nll']:.2f}, squared error of Q {found['mse']:.2f}; standardised logits "
        f"{max(found['standardised'].values()):.2f} where KL has {found['kl_of_these']:.2f}",
    )


def of_hierarchies() -> Iterator[tuple]:
    goals = {
        hidden: {arm: row["success"] for arm, row in arms.items()}
        for hidden, arms in read("studies/hierarchical")["hidden"].items()
    }
    shares = [
        f"hidden {hidden} {max(goals[hidden]['hvd_mse'], goals[hidden]['hvd_kl']):.2f} against "
        f"{goals[hidden]['q_mse']:.2f} of plain regression"
        for hidden in ("32", "128")
    ]
    kl = join((goals[hidden]["policy_kl"] for hidden in ("32", "128")), between=" and ")
    yield (
        "hierarchical.py",
        "value and advantage apart?",
        f"goals reached: {', '.join(shares)}; KL {kl}",
    )


def of_who_acts() -> Iterator[tuple]:
    found = read("studies/who_acts")
    yield (
        "who_acts.py",
        "who acts while a student learns?",
        "mean share of the teacher while learning, CartPole, Acrobot, Breakout: teacher "
        f"{found['td']:.2f}, student {found['sd']:.2f}, PPD {found['ppd']:.2f}, PPO alone "
        f"{found['ppo']:.2f}",
    )
    ppd, cloning = (found[f"{arm} - damaged teacher"].values() for arm in ("ppd", "td"))
    yield (
        "who_acts.py",
        "a damaged teacher?",
        f"where students end beside it, of the undamaged one's return: PPD {join(ppd, '{:+.2f}')}; "
        f"cloning copies it, {join(cloning, '{:+.2f}')}",
    )


def of_the_switch() -> Iterator[tuple]:
    pole, acrobot = (read(f"studies/finetune/{game}") for game in ("CartPole-v1", "Acrobot-v1"))
    ends = {
        arm: [mean(game["arms"][arm]) for game in (pole, acrobot)] for arm in ("warm", "qdagger")
    }
    falls = {
        (arm, name): f"{100 * game['arms'][arm]['fall']:.0f} %"
        for arm in ("cold", "q_cold")
        for name, game in (("CartPole", pole), ("Acrobot", acrobot))
    }
    yield (
        "finetune.py",
        "distil from a weak teacher, then PPO or QDagger?",
        f"no fall at the switch; PPO ends at {ends['warm'][0]} (teacher {pole['teacher']:.1f}) and "
        f"{ends['warm'][1]} ({acrobot['teacher']:.1f}), QDagger at {ends['qdagger'][0]} and "
        f"{ends['qdagger'][1]}; with a fresh critic CartPole falls by {falls['cold', 'CartPole']}, "
        f"with Q-values that begin there by {falls['q_cold', 'CartPole']} and "
        f"{falls['q_cold', 'Acrobot']}",
    )


def medians(part: str) -> dict[str, str]:
    """Thousands of steps by arm of exploration.py, "162k"."""
    arms = read(f"studies/exploration/{part}")["arms"]
    return {arm: f"{made['median'] / 1e3:.0f}k" for arm, made in arms.items()}


def of_exploration() -> Iterator[tuple]:
    deep = [read(f"studies/exploration/{size}")["arms"] for size in (14, 16, 20)]
    solved = {arm: join((arms[arm]["solved"] for arms in deep), "{}", " / ") for arm in deep[0]}
    rnd = ", ".join(medians(str(size))["rnd"] for size in (14, 16, 20))
    yield (
        "exploration.py",
        "does a bonus find what chance does not?",
        f"20 seeds, DeepSea 14 / 16 / 20: RND {solved['rnd']} solve (median {rnd} steps), an "
        f"ensemble {solved['ensemble']}, counts {solved['count']}, RDD {solved['rdd']}, DRND "
        f"{solved['drnd']} (why: `drnd.py`); PPO alone {solved['none']}",
    )
    half, rooms = medians("half"), medians("rooms")
    some = read("studies/exploration/half")["arms"]["kl"]["solved"]
    yield (
        "exploration.py",
        "a teacher that knows half of the way, DeepSea 20?",
        f"median steps: RND {half['rnd']}, with the teacher {half['rnd + kl']}; ensemble "
        f"{half['ensemble']}, with it {half['ensemble + kl']}; distillation alone never arrives, "
        f"PPO with the teacher's KL and no bonus in {some} of 20 seeds",
    )
    yield (
        "exploration.py",
        "one that goes to another goal, FourRooms?",
        f"20 seeds, median steps: RND {rooms['rnd']}, with the teacher {rooms['rnd + kl']}; "
        f"ensemble {rooms['ensemble']}, with it {rooms['ensemble + kl']}; PPO with the teacher's "
        f"KL and no bonus does as well, {rooms['kl']}; distillation alone never arrives",
    )


def of_harm() -> Iterator[tuple]:
    games = []
    for game in ("CartPole-v1", "MountainCar-v0", "Breakout-MinAtar", "SpaceInvaders-MinAtar"):
        arms = read(f"studies/no_harm/{game}")["arms"]
        games.append(f"{game.split('-')[0]} {mean(arms['ppo'])} and {mean(arms['rnd'])}")
    yield (
        "no_harm.py",
        "a bonus where none is needed?",
        f"20 seeds, PPO without and with RND: {'; '.join(games)}",
    )


def of_speed() -> Iterator[tuple]:
    peers = {name: f"{row['ratio']:.1f}" for name, row in read("speed/peers")["rows"].items()}
    yield (
        "peers.py",
        "how fast, on two CPU cores?",
        f"PPO {peers['rejax']} times Rejax and {peers['sb3']} times stable-baselines3; "
        f"distillation {peers['sb3, distillation']} times the same on stable-baselines3, "
        f"{peers['rsl_rl']} times rsl_rl",
    )
    added = read("speed/throughput")["added_to_ppo"]
    yield (
        "throughput.py",
        "what do extras cost?",
        f"of PPO's time: a teacher's KL {100 * added['kl 64']:.0f} %, RND with nets as wide as the "
        f"policy {100 * added['rnd 64']:.0f} %",
    )
    arms = read("studies/population")["arms"]
    yield (
        "population.py",
        "learning rates found while training?",
        "8 populations of 16 in one call, CartPole: mean of the members "
        f"{arms['population']['mean']:.1f}, of a grid without selection {arms['grid']['mean']:.1f}",
    )


def questions() -> list[tuple]:
    """(script, question, answer) of everything that was asked."""
    parts = (of_sight, of_several_games, of_q_teachers, of_hierarchies, of_who_acts)
    parts += (of_the_switch, of_exploration, of_harm, of_speed)
    return [(f"`{script}`", *said) for part in parts for script, *said in part()]


# --- sentences of README.md and NOTES.md ----------------------------------------------------------


def accelerator() -> str:
    """README.md: the main job on a GPU."""
    made = read("speed/accelerator")["made"]
    device = " ".join(made["device"].split()[:2])
    kd, ppo, breakout = "distil-CartPole", "ppo-CartPole", "distil-Breakout"
    return (
        f"On one {device} ({made['date']}, jax {made['versions']['jax']}) the distillation above "
        f"makes {fastest(kd, 4096, 1)} million environment steps a second with 4096 environments "
        f"and one seed, {fastest(kd, 16384, 32)} million with 16384 and 32 seeds in one call; PPO "
        f"{fastest(ppo, 4096, 1)} and {fastest(ppo, 16384, 32)} million, Breakout with a CNN "
        f"{fastest(breakout, 4096, 1)} and (1024 environments) {fastest(breakout, 1024, 32)} "
        "million."
    )


def demo() -> str:
    """README.md: what `make demo` finds."""
    found = read("speed/headline")
    rows, seconds, seeds = found["rows"], found["seconds"], found["settings"]["seeds"]
    score = {name: spread(row["iqm"], row["interval"]) for name, row in rows.items()}
    sizes = {name: f"{row['actor_parameters']:,}" for name, row in rows.items()}
    return (
        f"`make demo` is CartPole with {seeds} seeds, every one with a teacher, student and "
        "control of its own, all in one compiled call (`benchmarks/speed/headline.py`): "
        f"{seconds['run']:.0f} s, and {seconds['compile']:.0f} s of compiling. Interquartile means "
        f"[95 % interval]: teachers of {sizes['teacher']} actor parameters {score['teacher']}, "
        f"students of {sizes['student']} {score['student']}, the same network without a teacher "
        f"{score['control']}."
    )


def reached() -> str:
    """NOTES.md: a GPU against what was wanted."""
    kd, breakout = "distil-CartPole", "distil-Breakout"
    return (
        f"Reached: distillation of CartPole {fastest(kd, 4096, 1)}M steps/s with 4096 environments "
        f"and one seed (10M wanted), {fastest(kd, 16384, 32)}M with 16384 and 32 seeds (20M); of "
        f"Breakout {fastest(breakout, 4096, 1)}M with 4096 and one seed (2M), "
        f"{fastest(breakout, 1024, 32)}M with 1024 and 32 seeds (5M)."
    )


def lever(name: str) -> str:
    """NOTES.md: gains of one lever of levers.py, 64 environments / 16 seeds of 64 / 512."""
    rows = read("speed/levers")["rows"].values()
    return ", ".join(
        f"{label} {join((row[f'{what}, {name}']['gain'] for row in rows), between=' / ')}"
        for what, label in (("distillation", "distillation"), ("ppo", "PPO"))
    )


def floor() -> str:
    """NOTES.md: throughput.py's shares, in brackets with the actor's forward pass."""
    shares = []
    for row in read("speed/throughput")["rows"]:
        both = " and ".join(
            f"{row['efficiency'][what]:.2f} ({row['acting_too'][what]:.2f})"
            for what in ("distillation", "ppo")
        )
        shares.append(f"{row['env'].split('-')[0]} {row['num_envs']} x {row['seeds']} {both}")
    return f"{', '.join(shares)}."


def extras() -> str:
    """NOTES.md: what RND adds to PPO's time."""
    added = read("speed/throughput")["added_to_ppo"]
    narrow, wide = (f"{100 * added[name]:.0f} %" for name in ("rnd 64", "rnd 512"))
    return f"RND with nets of 64 adds {narrow} to PPO's time, with nets of 512 {wide}."


def compiling() -> str:
    """NOTES.md: seconds to the first step, from nothing and from the cache."""
    rows = read("speed/compile")["rows"]
    took = {
        how: {game: row[how]["trace"] + row[how]["compile"] for game, row in rows.items()}
        for how in ("nothing", "cached")
    }
    shown = []
    for seconds in took.values():
        slowest = seconds.pop("Asterix-MinAtar")
        few, most = min(seconds.values()), max(seconds.values())
        shown.append(f"{few:.1f} to {most:.1f} s (Asterix {slowest:.1f} s)")
    return (
        f"Tracing and compiling teacher, student and evaluation takes {shown[0]}, from the cache "
        f"{shown[1]}; 12 and 3 s were wanted."
    )


def bfloat16() -> str:
    """NOTES.md: networks in bfloat16 on a CPU."""
    found = read("speed/precision")["dtypes"]
    speed = found["bfloat16"]["steps_per_second"] / found["float32"]["steps_per_second"]
    students = [mean(found[dtype]["student"]) for dtype in ("bfloat16", "float32")]
    return (
        f"`bfloat16` networks (`precision.py`): students reach {students[0]} (float32: "
        f"{students[1]}), distillation runs at {speed:.2f} of the speed: these cores have no such "
        "arithmetic."
    )


def drnd() -> str:
    """NOTES.md: the parts of DRND."""
    arms = read("studies/drnd")["arms"].items()
    return "; ".join(f"{arm}: {row['solved']} ({row['median'] / 1e3:.1f}k)" for arm, row in arms)


def bonuses() -> str:
    """NOTES.md: median steps of RND and the ensemble on DeepSea 14, 16, 20."""
    deep = [medians(str(size)) for size in (14, 16, 20)]
    rnd, ensemble = (", ".join(row[arm] for row in deep) for arm in ("rnd", "ensemble"))
    return f"measured on fresh seed 5: RND {rnd} at 14, 16, 20, ensemble {ensemble}"
