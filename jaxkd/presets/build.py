"""What the main job makes of a preset: environments, networks, and what trains them."""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import envs, networks
from jaxkd.base import Algorithm, Env, Policy, UsageError
from jaxkd.evaluate import actor_size
from jaxkd.presets import settings
from jaxkd.presets.methods import Method, find_method
from jaxkd.presets.table import Preset
from jaxkd.recipes import ppo, pqn
from jaxkd.sequences import supervised

_DEFAULT_METHOD = "on_policy_distillation"
_MOST_LAYERS, _MOST_UNITS = 100, 10**6  # of a student; more is a slip of the keyboard
_SHARE = re.compile(r"\d{1,9}(\.\d{1,9})?(/\d{1,9})?")
_SIZES = re.compile(r"\d{1,18}(,\d{1,18})*")


def make_env(name: str, preset: Preset) -> Env:
    """The environments a preset trains on; those without a time limit are cut at 1000 steps."""
    env = envs.make(name, preset.num_envs, sticky=preset.sticky)
    if env.max_steps:
        return env
    return envs.make(name, preset.num_envs, sticky=preset.sticky, max_steps=1000)


def method_env(env: Env, method: str | Method) -> Env:
    """The environments that a method trains on: `env`, or the same in groups of equal starts."""
    group_size = find_method(method).group_size
    if not group_size:
        return env
    return envs.make(
        env.name,
        env.num_envs,
        max_steps=env.max_steps,
        group_size=group_size,
        sticky=env.sticky,
    )


def teacher_network(env: Env, preset: Preset) -> Policy:
    """The teacher's network."""
    if preset.blocks:
        return networks.transformer(env, *preset.blocks, context=_longest(env))
    if preset.channels:
        return networks.cnn(env, preset.channels, preset.hidden, normalise=preset.normalise_obs)
    return networks.mlp(env, preset.hidden, separate=True, normalise=preset.normalise_obs)


def q_network(env: Env, preset: Preset, hidden: tuple[int, ...] = (128, 128)) -> Policy:
    """A network for `pqn`, with layer normalisation and standardised observations."""
    return networks.mlp(env, hidden, activation=jax.nn.relu, layer_norm=True, normalise=True)


def teaching(
    env: Env, policy: Policy, preset: Preset, num_steps: int | None = None, **more: Any
) -> tuple[Algorithm, int]:
    """PPO as the preset says, or imitation of right answers, and its number of updates.

    Args:
        num_steps: environment steps; default the preset's. For the control of a distillation give
            the student's.
        more: keywords of `ppo`, before those that the preset gives; unused in imitation.
    """
    num_updates = updates(preset, num_steps or preset.num_steps)
    if preset.blocks:
        answers = settings.imitation(env, preset, num_updates)
        return supervised(env, policy, **answers), num_updates
    keywords = settings.reinforcement(env, preset, num_updates) | more
    return ppo(env, policy, **keywords), num_updates


def q_teaching(
    env: Env, policy: Policy, preset: Preset, num_steps: int = 500_000
) -> tuple[Algorithm, int]:
    """PQN as works for CartPole, Acrobot and Catch (benchmarks/studies/q_teacher.py), and its
    updates.
    """
    num_updates = updates(preset, num_steps)
    return pqn(env, policy, **settings.q_learning(env, preset, num_updates)), num_updates


def distillation(
    env: Env,
    student: Policy,
    teacher: Policy | None,
    preset: Preset,
    method: str | Method = _DEFAULT_METHOD,
    **more: Any,
) -> tuple[Algorithm, int]:
    """A method with the preset's settings, and its number of updates.

    Args:
        env: the method's own, see `method_env`.
        teacher: not looked at by a method that needs none; then the algorithm takes no inputs.
        method: a name of `METHODS`, or a record; default KL while the student acts.
        more: keywords of the method's recipe, before those that the preset gives.
    """
    record = find_method(method)
    steps_per_update = env.num_envs * rollout_length(env, preset, record)
    num_updates = max(1, preset.student_steps // steps_per_update)
    policies = (student, teacher) if record.needs_teacher else (student,)
    keywords = record.settings(env, preset, num_updates) | more
    return record.build(env, *policies, **keywords), num_updates


def updates(preset: Preset, num_steps: int) -> int:
    """Whole updates within a number of environment steps."""
    return max(1, num_steps // (preset.num_envs * preset.unroll_length))


def rollout_length(env: Env, preset: Preset, method: str | Method) -> int:
    """Steps of each environment in one update of a method: whole episodes where it has groups."""
    if find_method(method).group_size and env.max_steps:
        return env.max_steps
    return preset.unroll_length


def student_network(
    env: Env,
    preset: Preset,
    choice: str,
    teacher_size: int,
    method: str | Method = _DEFAULT_METHOD,
) -> Policy:
    """The student's network: "auto:1/15", "1/15", "mlp:44", "mlp:32,32" or "cnn:4,32" (channels,
    dense).

    "auto", or nothing, is a share of the teacher's actor parameters: the single hidden layer whose
    actor is nearest in size; for a CNN c channels and a dense layer of 8 c; for a transformer half
    of the layers, whose width is a multiple of twice the heads.
    """
    kind, _, sizes = choice.rpartition(":")
    make = partial(_network, env, preset, find_method(method))
    if kind in ("auto", "") and (share := _share(sizes)) > 0:
        if preset.blocks:
            layers, _, heads = preset.blocks
            half = lambda width: make("transformer", (max(1, layers // 2), 2 * heads * width))
            return _nearest(half, env, teacher_size * share)
        network = "cnn" if preset.channels else "mlp"
        return _nearest(lambda width: make(network, (width,)), env, teacher_size * share)
    if _SIZES.fullmatch(sizes):
        layers = _layers(sizes)
        if kind in ("mlp", "cnn") or (kind == "transformer" and preset.blocks and len(layers) == 2):
            return make(kind, layers)
    raise UsageError(
        "student must be auto:1/15, mlp:44, mlp:32,32 or cnn:4,32 (channels, then dense), "
        f"got {choice!r}."
    )


def _share(text: str) -> Fraction:
    """The number "1/15" or "0.1" stands for; 0 where it is none."""
    if not _SHARE.fullmatch(text):
        return Fraction(0)
    top, _, bottom = text.partition("/")
    divisor = int(bottom) if bottom else 1
    return Fraction(top) / divisor if divisor else Fraction(0)


def _layers(text: str) -> tuple[int, ...]:
    """The sizes "32,32" stands for, refused before anything of that size is made."""
    sizes = tuple(map(int, text.split(",")))
    if len(sizes) > _MOST_LAYERS or max(sizes) > _MOST_UNITS:
        raise UsageError(
            f"a student has at most {_MOST_LAYERS} layers of at most {_MOST_UNITS} units, "
            f"got {len(sizes)} of at most {max(sizes)}."
        )
    return sizes


def _network(env: Env, preset: Preset, method: Method, kind: str, sizes: tuple[int, ...]) -> Policy:
    if kind == "transformer":
        (layers, width), heads, context = sizes, preset.blocks[2], _longest(env)
        extra = method.heads
        return networks.transformer(env, layers, width, heads, context=context, extra=extra)
    common: dict[str, Any] = dict(normalise=preset.normalise_obs, extra=method.heads)
    if kind == "cnn":
        channels, dense = sizes[0], sizes[1:]
        return networks.cnn(env, (channels,), dense or (8 * channels,), **common)
    return networks.mlp(env, sizes, separate=True, layer_norm=method.q_student, **common)


def _longest(env: Env) -> int:
    """Steps of the longest episode, for a cache that holds it."""
    if env.max_steps is None:
        raise UsageError(f"{env.name!r} has no time limit, so no cache holds its episodes.")
    return env.max_steps


def _nearest(make: Callable[[int], Policy], env: Env, wanted: Fraction) -> Policy:
    """The network whose actor size is nearest to `wanted`; sizes grow with the width."""

    def size(width: int) -> int:
        policy = make(width)
        return actor_size(policy, jax.eval_shape(policy.init, jax.random.key(0)), env.obs_spec)

    low, high = 1, 2
    while size(high) < wanted:
        low, high = high, 2 * high
        if high > _MOST_UNITS:
            raise UsageError(
                f"no student of one layer of at most {_MOST_UNITS} units has the "
                f"{float(wanted):.3g} parameters asked for. Take a smaller share of the teacher."
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < wanted else (low, middle)
    return make(min((low, high), key=lambda width: abs(size(width) - wanted)))


def random_policy(env: Env) -> Policy:
    """A policy that knows nothing.

    Uniform over actions, or over the box's middle: normals of standard deviation 1, clipped.
    """
    policy = networks.mlp(env, (1,))

    def init(key: jax.Array) -> Any:
        return jax.tree.map(jnp.zeros_like, policy.init(key))

    return policy._replace(init=init, description=())
