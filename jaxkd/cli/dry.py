"""`--dry-run`: what a run would take, known by compiling it."""

import time
from typing import Any

import jax
import rich.table

from jaxkd.base import DeviceError
from jaxkd.cli.pace import trainings
from jaxkd.cli.plan import Plan, available_memory, in_words
from jaxkd.cli.settings import Distill, Teach
from jaxkd.cli.summary import network
from jaxkd.report import console
from jaxkd.run import memory_needed, seeds


def dry_run(settings: Distill | Teach, planned: Plan) -> int:
    """Prints the table of what is trained: sizes, memory, seconds of compiling.

    With the compile cache the run itself finds the programs there.

    Raises:
        DeviceError: the memory does not suffice.
    """
    most = 0
    table = rich.table.Table("phase", "network")
    for heading in ("parameters", "updates", "steps a seed", "memory", "compiling"):
        table.add_column(heading, justify="right")
    for phase, made in trainings(planned, seeds(settings.seed, settings.seeds)):
        policy, course, _ = phase.makes
        one: Any = jax.eval_shape(policy.init, jax.random.key(0))
        size = f"{sum(leaf.size for leaf in jax.tree.leaves(one)):,}"
        figures = ["-", "from a file", "-", "-"]
        if made is not None:
            started = time.monotonic()
            needed = memory_needed(made.algorithm, made.keys, 1, *made.inputs, streamed=True)
            took, most = time.monotonic() - started, max(most, needed)
            steps = course.num_updates * course.steps_per_update
            figures = [f"{course.num_updates:,}", f"{steps:,}", in_words(needed), f"{took:.1f} s"]
        table.add_row(phase.name, network(policy), size, *figures)
    console().print(table)
    available = available_memory(jax.devices()[0])
    if most > available:
        raise DeviceError(
            f"an update takes {in_words(most)}, and there are {in_words(available)}. Take fewer "
            "--seeds, or --lanes."
        )
    print(f"nothing was run; an update takes at most {in_words(most)} of {in_words(available)}")
    return 0
