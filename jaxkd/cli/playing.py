"""`jaxkd evaluate`: a saved policy plays, alone."""

import numpy as np
import rich.table

from jaxkd import check
from jaxkd.base import UsageError
from jaxkd.cli import device as devices
from jaxkd.cli import measure
from jaxkd.cli.running import keep_programs
from jaxkd.cli.settings import Evaluate
from jaxkd.cli.summary import network
from jaxkd.evaluate import interval, iqm
from jaxkd.policies import load_policy
from jaxkd.presets import make_env, preset
from jaxkd.report import console
from jaxkd.run import seeds

_MOST_EPISODES = 10**7


def evaluate(settings: Evaluate) -> int:
    """Prints the table of one policy's returns.

    Raises:
        UsageError, ArtifactError: the policy is none, or of other environments.
    """
    check.count("--episodes", settings.episodes)
    if settings.episodes > _MOST_EPISODES:
        raise UsageError(f"--episodes {settings.episodes}: at most {_MOST_EPISODES}.")
    if not 0 <= settings.seed < 2**32:
        raise UsageError(f"--seed must be in [0, 2**32), got {settings.seed}.")
    print(f"device: {devices.describe(devices.choose(settings.device))}", flush=True)
    policy, params = load_policy(settings.file)
    env = make_env(settings.env, preset(settings.env))
    check.fits("policy", policy, env)
    if not settings.no_cache:
        keep_programs()
    keys, greedy = seeds(settings.seed, 1), not settings.sample
    (played,) = measure.returns(
        env, policy, params, keys, episodes=settings.episodes, shared=True, greedy=(greedy,)
    )
    returns, lengths = played.returns[0], played.lengths[0]
    ended = returns[np.isfinite(returns)]
    cost = measure.cost(env, policy, params)
    table = rich.table.Table("policy", "actions", "return IQM\n[95 % interval]")
    for heading in ("mean", "least", "most", "steps", "actor\nparameters", "latency,\nbatch 1"):
        table.add_column(heading, justify="right")
    figures = ["-"] * 4
    if ended.size:
        low, high = interval(ended)
        found = (ended.mean(), ended.min(), ended.max())
        figures = [f"{iqm(ended):.2f}\n[{low:.2f}, {high:.2f}]", *(f"{x:.2f}" for x in found)]
    size, latency = f"{cost['actor_parameters']:,}", f"{cost['latency_us']:.0f} µs"
    steps = f"{lengths[lengths > 0].mean():.1f}" if (lengths > 0).any() else "-"
    actions = "greedy" if greedy else "sampled"
    table.add_row(network(policy), actions, *figures, steps, size, latency)
    console().print(table)
    print(f"{ended.size} of {returns.size} episodes of {settings.env} count")
    return 0
