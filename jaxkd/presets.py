"""Settings that work, as data: one row an environment, and what the main job makes of a row."""

from collections.abc import Callable
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd import envs, methods, networks, rewards
from jaxkd.base import Algorithm, Env, Policy, UsageError
from jaxkd.evaluate import actor_size
from jaxkd.recipes import ppo, pqn
from jaxkd.returns import gae


class Preset(NamedTuple):
    """How to train a teacher with PPO, and how to distil it; steps are environment steps of one seed."""

    num_envs: int = 64
    unroll_length: int = 32
    num_epochs: int = 4
    num_minibatches: int = 4
    learning_rate: float = 3e-3  # decays linearly to 0
    gamma: float = 0.99
    lambda_: float = 0.95
    entropy: float = 0.01
    normalise_obs: bool = False
    normalise_reward: bool = False
    num_steps: int = 250_000
    hidden: tuple[int, ...] = (64, 64)  # of an MLP, actor and critic apart
    channels: tuple[int, ...] = ()  # of a CNN with dense layers `hidden`, one torso
    student_steps: int = 100_000
    student_epochs: int = 4
    student_learning_rate: float = 3e-3  # decays linearly to 0
    gate: float | None = None  # mean greedy return that the teacher reaches over 10 seeds


_MINATAR = Preset(
    unroll_length=128,
    num_minibatches=8,
    learning_rate=1e-3,
    num_steps=1_000_000,
    hidden=(128,),
    channels=(16,),
    student_steps=1_000_000,
    student_epochs=2,
    student_learning_rate=1e-3,
)

PRESETS: dict[str, Preset] = {
    "CartPole-v1": Preset(normalise_reward=True, gate=500.0),
    "Acrobot-v1": Preset(
        num_envs=32,
        unroll_length=64,
        learning_rate=2e-3,
        entropy=0.005,
        normalise_obs=True,
        normalise_reward=True,
        num_steps=400_000,
        gate=-83.0,
    ),
    "MountainCar-v0": Preset(
        num_envs=16,
        unroll_length=128,
        num_epochs=8,
        num_minibatches=8,
        learning_rate=4e-3,
        lambda_=0.98,
        entropy=0.0,
        normalise_obs=True,
        normalise_reward=True,
        num_steps=300_000,
        student_steps=250_000,
        gate=-112.0,
    ),
    "Pendulum-v1": Preset(
        num_envs=32,
        unroll_length=64,
        num_epochs=8,
        num_minibatches=8,
        learning_rate=1e-3,
        gamma=0.95,
        entropy=0.0,
        normalise_reward=True,
        gate=-185.0,
    ),
    "MountainCarContinuous-v0": Preset(
        num_envs=16,
        unroll_length=256,
        num_epochs=8,
        num_minibatches=8,
        learning_rate=1e-3,
        gamma=0.999,
        entropy=0.0,
        normalise_obs=True,
        normalise_reward=True,
        num_steps=300_000,
        gate=92.0,
    ),
    "Catch-bsuite": Preset(unroll_length=16, num_steps=100_000, gate=1.0),
    "FourRooms-misc": Preset(normalise_obs=True, num_steps=150_000),
    "Breakout-MinAtar": _MINATAR._replace(learning_rate=5e-3),  # at 1e-3 it stays at 7.0
    "SpaceInvaders-MinAtar": _MINATAR,
    "Freeway-MinAtar": _MINATAR,
    "Asterix-MinAtar": _MINATAR,
}


def preset(name: str) -> Preset:
    """The preset of an environment id; sensible defaults (both normalisations, 500k steps) for any other.

    >>> preset("CartPole-v1").gate
    500.0
    """
    return PRESETS.get(name, Preset(normalise_obs=True, normalise_reward=True, num_steps=500_000))


def make_env(name: str, p: Preset) -> Env:
    """The environments a preset trains on; those without a time limit are cut at 1000 steps."""
    env = envs.make(name, p.num_envs)
    return env if env.max_steps else envs.make(name, p.num_envs, max_steps=1000)


def teacher_network(env: Env, p: Preset) -> Policy:
    """The teacher's network."""
    if p.channels:
        return networks.cnn(env, p.channels, p.hidden, normalise=p.normalise_obs)
    return networks.mlp(env, p.hidden, separate=True, normalise=p.normalise_obs)


def teaching(
    env: Env, policy: Policy, p: Preset, num_steps: int | None = None
) -> tuple[Algorithm, int]:
    """PPO as the preset says, and its number of updates; for the control of a distillation `num_steps` is the student's."""
    num_updates = updates(p, num_steps or p.num_steps)
    return ppo(env, policy, **_reinforcement(env, p, num_updates)), num_updates


def _reinforcement(env: Env, p: Preset, num_updates: int) -> dict[str, Any]:
    """Keywords of `ppo`."""
    return dict(
        entropy=p.entropy,
        learning_rate=optax.linear_schedule(
            p.learning_rate, 0.0, num_updates * p.num_epochs * p.num_minibatches
        ),
        returns=gae(p.gamma, p.lambda_),
        rewards={"normalise": rewards.normalise(p.gamma)} if p.normalise_reward else None,
        unroll_length=p.unroll_length,
        num_epochs=p.num_epochs,
        num_minibatches=p.num_minibatches,
    )


def _supervision(env: Env, p: Preset, num_updates: int) -> dict[str, Any]:
    """Keywords of `distill`."""
    rate = optax.linear_schedule(
        p.student_learning_rate, 0.0, num_updates * p.student_epochs * p.num_minibatches
    )
    return dict(
        optimizer=optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5)),
        unroll_length=p.unroll_length,
        num_epochs=p.student_epochs,
        num_minibatches=p.num_minibatches,
    )


def q_network(env: Env, p: Preset, hidden: tuple[int, ...] = (128, 128)) -> Policy:
    """A network for `pqn`, with layer normalisation and standardised observations."""
    return networks.mlp(env, hidden, activation=jax.nn.relu, layer_norm=True, normalise=True)


def q_teaching(
    env: Env, policy: Policy, p: Preset, num_steps: int = 500_000
) -> tuple[Algorithm, int]:
    """PQN with settings that work for CartPole, Acrobot and Catch (benchmarks/studies/q_teacher.py), and its number of updates."""
    num_updates = updates(p, num_steps)
    return pqn(env, policy, **_q_learning(env, p, num_updates)), num_updates


def _q_learning(env: Env, p: Preset, num_updates: int) -> dict[str, Any]:
    """Keywords of `pqn`: epsilon falls from 1 to 0.2 over the first fifth."""
    epochs, minibatches = 4, 8
    return dict(
        epsilon=optax.linear_schedule(1.0, 0.2, max(1, num_updates // 5)),
        learning_rate=optax.linear_schedule(5e-4, 0.0, num_updates * epochs * minibatches),
        gamma=p.gamma,
        lambda_=0.95,
        rewards={"normalise": rewards.normalise(p.gamma)},
        unroll_length=p.unroll_length,
        num_epochs=epochs,
        num_minibatches=minibatches,
    )


def _paid(env: Env, p: Preset, num_updates: int) -> dict[str, Any]:
    """Keywords of Czarnecki's recipes, which bring their own returns and rewards; the environment's is added, see `n_distillation`."""
    keywords = _reinforcement(env, p, num_updates)
    return {
        name: value for name, value in keywords.items() if name not in ("returns", "rewards")
    } | dict(gamma=p.gamma, reward=1.0)


def _explored(env: Env, p: Preset, num_updates: int) -> dict[str, Any]:
    """Keywords of `exploration`, which brings its own returns."""
    keywords = _weaned(env, p, num_updates)
    del keywords["returns"]
    return keywords | dict(gamma=p.gamma, lambda_=p.lambda_)


def _weaned(env: Env, p: Preset, num_updates: int) -> dict[str, Any]:
    return _reinforcement(env, p, num_updates) | dict(
        weight=optax.linear_schedule(2.0, 0.0, max(1, num_updates * 3 // 10))
    )


def _graded(env: Env, p: Preset, num_updates: int) -> dict[str, Any]:
    if p.gate is None or env.name not in _RANDOM:
        raise UsageError(
            f"qdagger needs an expected return of the teacher; presets know it for {', '.join(_RANDOM)}, not for {env.name!r}."
        )
    return _q_learning(env, p, num_updates) | dict(
        teacher_return=p.gate, random_return=_RANDOM[env.name]
    )


def _switched(env: Env, p: Preset, num_updates: int) -> dict[str, Any]:
    return _reinforcement(env, p, num_updates) | dict(
        switch=max(1, num_updates // 2), half_life=max(1, num_updates * 3 // 10)
    )


def _guided(env: Env, p: Preset, num_updates: int) -> dict[str, Any]:
    horizon = lambda update, episode_return: _GUIDED_STEPS * (1 - 2 * update / num_updates)
    return _q_learning(env, p, num_updates) | dict(horizon=horizon)


_RANDOM = {
    "CartPole-v1": 22.5,
    "Acrobot-v1": -499.5,
    "MountainCar-v0": -200.0,
    "Catch-bsuite": -0.6,
}  # results/gates/*.json, "random"
_GUIDED_STEPS = 100  # of the guide in the first update of jump_start; 0 from half of the updates on

# Keywords of the recipe of that name, from an environment, its preset and a number of updates.
METHODS: dict[str, Callable[[Env, Preset, int], dict[str, Any]]] = {
    "on_policy_distillation": _supervision,
    "policy_distillation": _supervision,
    "dagger": _supervision,
    "kickstarting": _weaned,
    "proximal_policy_distillation": _reinforcement,
    "qdagger": _graded,
    "grpo": lambda env, p, num_updates: (
        _supervision(env, p, num_updates) | dict(unroll_length=env.max_steps)
    ),
    "distil_then_finetune": _switched,
    "jump_start": _guided,
    "guided_exploration": _explored,
    "jump_start_exploration": _guided,
    "teacher_distillation": _supervision,
    "n_distillation": _paid,
    "entropy_regularised": _paid,
    "expected_entropy_regularised": _paid,
    "teacher_value_reward": _paid,
}
_Q_METHODS = (
    "qdagger",
    "jump_start",
    "jump_start_exploration",
)  # their students are Q-networks, which need layer normalisation (Gallici et al. 2025)
_BONUS_METHODS = ("guided_exploration",)  # their students have a value head for the bonus
_GROUP_SIZE = 8  # of grpo


def recipe(method: str) -> Callable[..., Algorithm]:
    """The recipe of `jaxkd.methods` by its name, with - or _.

    >>> recipe("on-policy-distillation").__name__
    'on_policy_distillation'
    """
    name = method.replace("-", "_")
    if name not in METHODS:
        near = get_close_matches(name, METHODS, 1)
        raise UsageError(
            f"unknown method {method!r}.{f' Did you mean {near[0]!r}?' if near else ''} (jaxkd methods lists all)"
        )
    return getattr(methods, name)


def method_env(env: Env, method: str) -> Env:
    """The environments that a method's student trains on: `env`, or for grpo the same in groups of equal starts."""
    if recipe(method) is not methods.grpo:
        return env
    return envs.make(env.name, env.num_envs, max_steps=env.max_steps, group_size=_GROUP_SIZE)


def distillation(
    env: Env, student: Policy, teacher: Policy, p: Preset, method: str = "on_policy_distillation"
) -> tuple[Algorithm, int]:
    """A method with the preset's settings on its `method_env`, and its number of updates; default KL distillation while the student acts."""
    build = recipe(method)
    length = env.max_steps if build is methods.grpo and env.max_steps else p.unroll_length
    num_updates = max(1, p.student_steps // (env.num_envs * length))
    return build(env, student, teacher, **METHODS[build.__name__](env, p, num_updates)), num_updates


def updates(p: Preset, num_steps: int) -> int:
    """Whole updates within a number of environment steps."""
    return max(1, num_steps // (p.num_envs * p.unroll_length))


def student_network(
    env: Env, p: Preset, choice: str, teacher_size: int, method: str = "on_policy_distillation"
) -> Policy:
    """The student's network: "auto:1/15" of the teacher's actor parameters, "mlp:44", "mlp:32,32", "cnn:4,32".

    "auto" takes the single hidden layer whose actor is nearest in size; for a CNN c channels and a dense layer of 8 c.
    """
    kind, _, sizes = choice.partition(":")
    name = recipe(method).__name__
    heads: dict[str, Any] = dict(
        layer_norm=name in _Q_METHODS, extra=("bonus",) * (name in _BONUS_METHODS)
    )
    try:
        if kind == "auto":
            return _nearest(
                lambda width: _network(env, p, "cnn" if p.channels else "mlp", heads, width),
                env,
                teacher_size * Fraction(sizes),
            )
        if kind in ("mlp", "cnn"):
            return _network(env, p, kind, heads, *map(int, sizes.split(",")))
    except (ValueError, ZeroDivisionError) as error:
        if isinstance(error, UsageError):
            raise
    raise UsageError(
        f"student must be auto:1/15, mlp:44, mlp:32,32 or cnn:4,32 (channels, then dense), got {choice!r}."
    )


def _network(env: Env, p: Preset, kind: str, heads: dict[str, Any], *sizes: int) -> Policy:
    if kind == "cnn":
        return networks.cnn(
            env,
            sizes[:1],
            sizes[1:] or (8 * sizes[0],),
            normalise=p.normalise_obs,
            extra=heads["extra"],
        )
    return networks.mlp(env, sizes, separate=True, normalise=p.normalise_obs, **heads)


def _nearest(make: Callable[[int], Policy], env: Env, wanted: Fraction) -> Policy:
    """The network whose actor size is nearest to `wanted`; sizes grow with the width."""

    def size(width: int) -> int:
        policy = make(width)
        return actor_size(policy, jax.eval_shape(policy.init, jax.random.key(0)), env.obs_spec)

    low, high = 1, 2
    while size(high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < wanted else (low, middle)
    return make(min((low, high), key=lambda width: abs(size(width) - wanted)))


def random_policy(env: Env) -> Policy:
    """A policy that knows nothing: uniform over actions, or over the box's middle (normals of standard deviation 1, clipped)."""
    policy = networks.mlp(env, (1,))

    def init(key: jax.Array) -> Any:
        return jax.tree.map(jnp.zeros_like, policy.init(key))

    return policy._replace(init=init, description=())
