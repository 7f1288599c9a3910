"""`jaxkd bench`: how fast is this machine?"""

import rich.table

from jaxkd import check
from jaxkd.cli import device as devices
from jaxkd.cli.pace import pace
from jaxkd.cli.settings import Bench
from jaxkd.presets import PRESETS, make_env, preset, teacher_network, teaching
from jaxkd.report import console
from jaxkd.run import lanes, seeds

_SECONDS = 2.0  # of measuring, an environment


def bench(settings: Bench) -> int:
    """Prints the table: PPO as the preset says, after a compilation that no cache answers."""
    check.count("--seeds", settings.seeds)
    print(f"device: {devices.describe(devices.choose(settings.device))}", flush=True)
    names = settings.envs or (tuple(PRESETS) if settings.all else ("CartPole-v1",))
    table = rich.table.Table("environment", "envs x steps x seeds")
    for heading in ("compiling", "an update", "steps/s"):
        table.add_column(heading, justify="right")
    for name in names:
        print(f"{name} ...", flush=True)
        compiling, update, steps = _measure(name, settings.seeds)
        chosen = preset(name)
        sizes = f"{chosen.num_envs} x {chosen.unroll_length} x {settings.seeds}"
        figures = f"{compiling:.1f} s", f"{1000 * update:.1f} ms", f"{steps / update:,.0f}"
        table.add_row(name, sizes, *figures)
    console().print(table)
    return 0


def _measure(name: str, num_seeds: int) -> tuple[float, float, int]:
    """(seconds of compiling, seconds of an update, its steps of all seeds)."""
    chosen = preset(name)
    env = make_env(name, chosen)
    many, keys = lanes(teaching(env, teacher_network(env, chosen), chosen)[0]), seeds(0, num_seeds)
    compiling, update = pace(many, keys, [], _SECONDS)
    return compiling, update, env.num_envs * chosen.unroll_length * num_seeds
