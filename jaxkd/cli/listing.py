"""`jaxkd envs` and `jaxkd methods`."""

import jax
import rich.table

from jaxkd import check, presets
from jaxkd import envs as environments
from jaxkd.report import console


def envs() -> int:
    """Prints the table of environments."""
    jax.config.update("jax_platforms", "cpu")
    table = rich.table.Table("id", "observation", "actions", "max steps", "preset")
    for name in environments.ids():
        env = environments.make(name, 1)
        obs, action = check.spaces(env.obs_spec, env.action_space)
        seen = ", ".join(
            f"{path + ' ' if path else ''}{'x'.join(map(str, shape)) or 'scalar'} {dtype}"
            for path, shape, dtype in obs
        )
        acts = f"{action[1]} actions" if action[0] == "discrete" else f"{action[1]} in [-1, 1]"
        limit = str(env.max_steps or "none (presets cut at 1000)")
        table.add_row(name, seen, acts, limit, _preset_in_words(name))
    console().print(table)
    return 0


def _preset_in_words(name: str) -> str:
    if name not in presets.PRESETS:
        return "-"
    gate = presets.PRESETS[name].gate
    return "yes" if gate is None else f"yes, return {gate:g}"


def methods() -> int:
    """Prints the table of methods, as their records say."""
    table = rich.table.Table(show_lines=True)
    table.add_column("method", no_wrap=True)
    for heading in ("what it is", "paper", "needs"):
        table.add_column(heading)
    for name, method in presets.METHODS.items():
        table.add_row(name, method.summary, method.paper, method.needs)
    console().print(table)
    return 0
