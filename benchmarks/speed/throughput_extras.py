"""What throughput.py measures beside its table: a convolution, Seaquest, what extras cost PPO."""

from functools import partial

import jax
import jax.numpy as jnp
from throughput import PPO_OPTIMIZER, Sizes, T, env_only, measure, ratio, train

import jaxkd
from jaxkd import methods, rewards
from jaxkd.losses import forward_kl
from jaxkd.networks.cnn import banded


def convolution(size: Sizes) -> float:
    """How much faster the banded 3x3 convolution is than `lax.conv`: forward and gradient of a
    minibatch of MinAtar's network, a ratio.
    """
    x, kernel = jnp.ones((1024, 10, 10, 4)), jnp.ones((3, 3, 4, 16)) / 36
    plain = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )

    def trained(convolve):
        step = lambda kernel, _: (
            kernel - 1e-9 * jax.grad(lambda k: jnp.sum(jnp.square(convolve(x, k))))(kernel),
            None,
        )
        return lambda kernel: jax.lax.scan(step, kernel, None, size.repeats)[0]

    both = {"banded": banded, "plain": plain}
    sources = {name: (trained(fn), (kernel,)) for name, fn in both.items()}
    seconds, _ = measure(sources, size.rounds)
    return ratio(seconds["plain"], seconds["banded"])


def seaquest(size: Sizes) -> float:
    """How much faster Seaquest steps with room for 32 entities of each kind than for 100."""
    sources, key = {}, jaxkd.seeds(0, 1)
    for name, given in {"100": {}, "32": {"entities": 32}}.items():
        env = jaxkd.envs.make("Seaquest-MinAtar", 128, **given)
        start = jax.tree.map(
            lambda x: x[None], (env.reset(key[0])[0], (), jnp.ones((T, 128), jnp.int32))
        )
        first = jax.jit(jax.vmap(env_only(env)))(
            (start[0], (), start[2]), key
        )  # what the scan stacks
        sources[name] = (lambda x, keys, env=env: jax.vmap(env_only(env))(x, keys), (first, key))
    seconds, _ = measure(sources, size.rounds)
    return ratio(seconds["100"], seconds["32"])


def added_to_ppo(size: Sizes) -> dict[str, float]:
    """What is added to PPO's seconds, as a share of them: a teacher's KL, and a bonus whose
    predictor learns from a quarter of the rows.
    """
    env = jaxkd.envs.make("CartPole-v1", 64)
    big, curious = (
        jaxkd.networks.mlp(env, (64, 64), separate=True, extra=extra) for extra in ((), ("bonus",))
    )
    key, given = jaxkd.seeds(0, 1), dict(optimizer=PPO_OPTIMIZER)
    predictor = lambda width: rewards.Predictor(
        hidden=(width, width), features=width, batch_size=T * 64 // 8, num_minibatches=2
    )
    rnd = lambda width: methods.exploration(
        env, curious, bonus=rewards.rnd(predictor=predictor(width), stream="bonus"), **given
    )
    teacher = (
        jaxkd.ppo(env, big, big, losses={"kl": forward_kl()}, **given),
        (key, big.init(key[0])),
    )
    sources = {"ppo": (jaxkd.ppo(env, big, **given), (key,)), "kl 64": teacher}
    sources |= {f"rnd {width}": (rnd(width), (key,)) for width in (64, 512)}
    timed = {
        name: (train(algorithm, size.repeats), args) for name, (algorithm, args) in sources.items()
    }
    seconds, _ = measure(timed, size.rounds)
    return {name: ratio(seconds[name], seconds["ppo"]) - 1 for name in sources if name != "ppo"}


MEASURES = {
    "banded_convolution": convolution,
    "seaquest_entities": seaquest,
    "added_to_ppo": added_to_ppo,
}
