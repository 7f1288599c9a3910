"""`jaxkd export` and `jaxkd check`: a policy leaves JAX."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check as arguments
from jaxkd.base import Env, Policy
from jaxkd.cli.settings import Check, Export
from jaxkd.export import check_export
from jaxkd.export import export as write
from jaxkd.policies import load_policy
from jaxkd.presets import make_env, preset
from jaxkd.run import seeds

_STEPS = 256


def export(settings: Export) -> int:
    """Writes the artifact and says what it is.

    Raises:
        UsageError, ArtifactError: the policy is none, of other environments, or answers otherwise.
    """
    jax.config.update("jax_platforms", "cpu")
    policy, params = load_policy(settings.file)
    env = make_env(settings.env, preset(settings.env))
    arguments.fits("policy", policy, env)
    observations, resets = _played(env, policy, params)
    out = settings.out or Path(settings.file.stem)
    given: dict[str, Any] = {"to": settings.to, "int8": settings.int8, "env": settings.env}
    made = write(policy, params, out, observations=observations, resets=resets, **given)
    card = json.loads(made.read_text())
    sizes = {name: (made.parent / name).stat().st_size for name in card["files"]}
    for name, size in sizes.items():
        print(f"{made.parent / name}  {size:,} bytes")
    if "weight_bytes" in card:
        print(f"{card['weight_bytes']:,} bytes of constants, {4 * card['memory']:,} of memory")
    return check(Check(made))


def check(settings: Check) -> int:
    """Says how the artifact answers."""
    parity = check_export(settings.artifact)
    print(
        f"{settings.artifact}: {100 * parity.equal:.1f} % of {parity.number} actions are the "
        f"policy's, outputs within {parity.error:.1e}"
    )
    return 0


def _played(env: Env, policy: Policy, params: Any) -> tuple[Any, jax.Array]:
    """What one environment shows while the policy plays its best actions: obs [n, ...], resets."""

    def step(carry, key):
        state, obs, memory, reset = carry
        memory, out = policy.step(params, memory, obs, reset)
        state, after = env.step(key, state, out.policy.mode())
        first = jax.tree.map(lambda x: x[0], (obs, reset))
        return (state, after.obs, memory, jnp.maximum(after.terminated, after.truncated)), first

    def play(key):
        k_reset, k_play = jax.random.split(key)
        begin = (*env.reset(k_reset), policy.initial_carry(env.num_envs), jnp.ones(env.num_envs))
        return jax.lax.scan(step, begin, jax.random.split(k_play, _STEPS))[1]

    return jax.jit(play)(seeds(0, 1)[0])
