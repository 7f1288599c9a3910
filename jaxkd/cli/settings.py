"""The commands and their options, as data for tyro."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg, subcommand

Device = Literal["auto", "cpu", "gpu", "tpu"]


@dataclass(frozen=True)
class _Run:
    """What every command that trains takes."""

    env: Annotated[Positional[str], arg(metavar="ENV")]
    """Environment id; `jaxkd envs` lists all."""
    seeds: int = 16
    """Number of seeds, trained in one compiled function."""
    lanes: int | None = None
    """Seeds computed at once; fewer take less memory (default: all)."""
    seed: int = 0
    """The number all keys come from."""
    out: Path | None = None
    """New or empty directory to write to (default: runs/ENV-TIME)."""
    device: Device = "auto"
    """Where to compute; fails where the device is not there."""
    steps: int | None = None
    """Environment steps of a teacher (default: the preset's)."""
    episodes: int = 128
    """Evaluation episodes of each policy and seed, greedy and as many sampled."""
    set: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="NAME=VALUE")] = ()
    """Another value for a field of the preset, such as learning_rate=1e-3; may be repeated."""
    grid: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="NAME=VALUE,VALUE")] = ()
    """Values that are trained at once, such as learning_rate=1e-3,3e-3; repeated: all combinations.
    Of a distillation's student, of `teach` the teacher; numbers only, no sizes."""
    budget: str | None = None
    """Wall time that the training may take, such as 60s or 5m, instead of steps; compiling and
    judging come on top."""
    devices: int = 1
    """Devices to spread seeds and environments over; on a CPU virtual ones are made."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Compile everything, say what it takes, and run nothing."""
    checkpoint_every: float | None = None
    """Seconds between two checkpoints; 0: at the end of each phase only (default: 30, and more
    where they would take over 2 % of the time)."""
    no_cache: FlagCreatePairsOff[bool] = False
    """Compiled programs are not kept for the next start."""
    track: str = ""
    """Metrics to TensorBoard's files (tb), to an offline run of Weights & Biases (wandb) or to both
    (tb,wandb), beside metrics.jsonl."""
    no_report: FlagCreatePairsOff[bool] = False
    """No report.html at the end (`jaxkd report RUN` writes it later)."""
    quiet: FlagCreatePairsOff[bool] = False
    """No progress."""
    traceback: FlagCreatePairsOff[bool] = False
    """Where an error came from, for a bug report."""


@dataclass(frozen=True)
class Distill(_Run):
    """Train a teacher, distil it into a small student, compare.

    Many seeds at once, one table, one directory.
    """

    method: str = "on_policy_distillation"
    """How to distil; `jaxkd methods` lists all."""
    student: str = "auto:1/15"
    """auto:1/15 (the hidden layer whose actor is nearest to 1/15 of the teacher's), mlp:44,
    mlp:32,32 or cnn:4,32. Several at once: 1/15,1/30,mlp:4,4,mlp:4 are four students of one
    teacher, with a picture of returns by size."""
    teacher: Path | None = None
    """A policy saved by jaxkd.save_policy, the teacher of all seeds; without it every seed trains
    its own."""
    student_steps: int | None = None
    """Environment steps of a student, and of the same network trained without a teacher (default:
    the preset's)."""


@dataclass(frozen=True)
class Teach(_Run):
    """Train a teacher with every seed, and save it."""


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped or killed, as if it had not been."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Its directory."""
    device: Device | None = None
    """Where to compute (default: as before)."""
    devices: int | None = None
    """How many to spread over (default: as before)."""
    quiet: FlagCreatePairsOff[bool] = False
    """No progress."""
    traceback: FlagCreatePairsOff[bool] = False
    """Where an error came from, for a bug report."""


@dataclass(frozen=True)
class Report:
    """Write report.html and report.md of a run: table, curves, film, settings, how to cite it."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Its directory; what an unfinished one lacks is said."""
    device: Device = "auto"
    """Where to play the film's episode; fails where the device is not there."""
    traceback: FlagCreatePairsOff[bool] = False
    """Where an error came from, for a bug report."""


@dataclass(frozen=True)
class Runs:
    """List the runs below a directory: where they stand, and their returns."""

    directory: Annotated[Positional[Path], arg(metavar="DIRECTORY")] = Path("runs")
    """Where to look."""


@dataclass(frozen=True)
class Compare:
    """Put finished runs side by side: what was set otherwise, what became of it, what their seeds
    say.

    Runs of several environments are compared over all of them: those that differ in nothing but the
    environment are one side.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN RUN ...")]
    """Their directories."""
    format: Literal["table", "markdown", "latex"] = "table"
    """How to print what the seeds say: to look at, or to paste."""
    profile: Path | None = None
    """A file (.svg, .png, .pdf) for the performance profiles: the share of seeds that reach each
    share of their teacher's return."""


@dataclass(frozen=True)
class Bench:
    """Measure this machine: compile seconds and steps a second of PPO, by environment."""

    envs: Annotated[Positional[tuple[str, ...]], arg(metavar="ENV ...")] = ()
    """Environment ids (default: CartPole-v1)."""
    all: FlagCreatePairsOff[bool] = False
    """Every environment that has a preset."""
    seeds: int = 1
    """Seeds at once."""
    device: Device = "auto"
    """Where to compute; fails where the device is not there."""
    traceback: FlagCreatePairsOff[bool] = False
    """Where an error came from, for a bug report."""


@dataclass(frozen=True)
class Evaluate:
    """Play episodes with a saved policy, acting alone."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """A policy saved by jaxkd.save_policy or a run: NAME.npz."""
    env: Annotated[Positional[str], arg(metavar="ENV")]
    """Environment id; `jaxkd envs` lists all."""
    episodes: int = 128
    """Episodes to play."""
    seed: int = 0
    """The number the key comes from."""
    sample: FlagCreatePairsOff[bool] = False
    """Sampled actions instead of the most likely ones."""
    device: Device = "auto"
    """Where to compute; fails where the device is not there."""
    no_cache: FlagCreatePairsOff[bool] = False
    """Compiled programs are not kept for the next start."""
    traceback: FlagCreatePairsOff[bool] = False
    """Where an error came from, for a bug report."""


@dataclass(frozen=True)
class Export:
    """Write a saved policy for a computer without JAX, checked where it will be believed."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """A policy saved by jaxkd.save_policy or a run: NAME.npz."""
    env: Annotated[Positional[str], arg(metavar="ENV")]
    """Environment id; what the policy sees while it plays there is what the artifact is checked
    on."""
    to: Literal["c", "numpy"] = "c"
    """C99 without malloc, or the files of jaxkd.runtime, which needs numpy alone."""
    int8: FlagCreatePairsOff[bool] = False
    """Of C: kernels as int8, a quarter of the bytes."""
    out: Path | None = None
    """Path of the artifact without a suffix (default: FILE's, in the current directory)."""
    traceback: FlagCreatePairsOff[bool] = False
    """Where an error came from, for a bug report."""


@dataclass(frozen=True)
class Check:
    """Replay the golden observations of an exported policy with its backend; compiles C."""

    artifact: Annotated[Positional[Path], arg(metavar="ARTIFACT")]
    """NAME.export.json."""
    traceback: FlagCreatePairsOff[bool] = False
    """Where an error came from."""


@dataclass(frozen=True)
class CheckEnv:
    """Look for what is wrong with an environment of your own; exit code 1 where something is."""

    env: Annotated[Positional[str], arg(metavar="ENV|MODULE:FACTORY")]
    """Environment id, or what makes the object: maze:Maze of ./maze.py, my.package:make."""
    steps: int = 256
    """Steps of random play, in each of 16 environments."""
    seed: int = 0
    """The number the play comes from."""
    traceback: FlagCreatePairsOff[bool] = False
    """Where an error came from."""


@dataclass(frozen=True)
class Envs:
    """List the environments: id, observation, actions, time limit, preset, expected return."""


@dataclass(frozen=True)
class Methods:
    """List the ways to distil, with their papers."""


@dataclass(frozen=True)
class Doctor:
    """Check the installation: versions, device, a small distillation, missing extras."""

    device: Device = "auto"
    """The device to check."""
    traceback: FlagCreatePairsOff[bool] = False
    """Where an error came from, for a bug report."""


COMMANDS = (
    Annotated[Distill, subcommand("distill")]
    | Annotated[Teach, subcommand("teach")]
    | Annotated[Resume, subcommand("resume")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Runs, subcommand("runs")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[Methods, subcommand("methods")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Check, subcommand("check")]
    | Annotated[CheckEnv, subcommand("check-env")]
    | Annotated[Envs, subcommand("envs")]
    | Annotated[Doctor, subcommand("doctor")]
)
