"""The commands and their options, as data for tyro."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

Device = Literal["auto", "cpu", "gpu", "tpu"]


@dataclass(frozen=True)
class Distill:
    """Train a teacher, distil it into a small student, compare.

    Many seeds at once, one table, one directory.
    """

    env: Annotated[Positional[str], arg(metavar="ENV")]
    """Environment id; `jaxkd envs` lists all."""
    method: str = "on_policy_distillation"
    """How to distil; `jaxkd methods` lists all."""
    student: str = "auto:1/15"
    """auto:1/15 (the hidden layer whose actor is nearest to 1/15 of the teacher's), mlp:44,
    mlp:32,32 or cnn:4,32."""
    teacher: Path | None = None
    """A policy saved by jaxkd.save_policy, the teacher of all seeds; without it every seed trains
    its own."""
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
    student_steps: int | None = None
    """Environment steps of a student, and of the same network trained without a teacher (default:
    the preset's)."""
    sticky: float | None = None
    """Probability that an action is repeated, in training and in judging (default: the preset's)."""
    episodes: int = 128
    """Evaluation episodes of each policy and seed."""
    quiet: FlagCreatePairsOff[bool] = False
    """No progress."""
    traceback: FlagCreatePairsOff[bool] = False
    """Where an error came from, for a bug report."""


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
    | Annotated[Methods, subcommand("methods")]
    | Annotated[Envs, subcommand("envs")]
    | Annotated[Doctor, subcommand("doctor")]
)
