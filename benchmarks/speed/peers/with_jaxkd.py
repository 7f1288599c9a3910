"""Ours: PPO and distillation in CartPole, and distillation in Pendulum, each one compiled call."""

import itertools
import time

import child
import jax
import jax.numpy as jnp
import optax

import jaxkd


def compiled(algorithm, updates: int, *inputs):
    """(what makes the updates of a fresh run, seconds of tracing and compiling)."""
    seeds, began = itertools.count(), time.perf_counter()
    program = (
        jax.jit(lambda key: jaxkd.run(algorithm, key, updates, *inputs))
        .lower(jax.random.key(0))
        .compile()
    )
    return lambda: jax.block_until_ready(
        program(jax.random.key(next(seeds)))
    ), time.perf_counter() - began


def ppo(updates: int, shuffle: str = "env"):
    env = jaxkd.envs.make("CartPole-v1", child.NUM_ENVS)
    policy = jaxkd.networks.mlp(env, child.TEACHER, separate=True)
    optimizer = optax.chain(
        optax.clip_by_global_norm(child.CLIP_NORM), optax.adam(child.PPO_RATE, eps=1e-5)
    )
    sizes = dict(
        unroll_length=child.UNROLL_LENGTH,
        num_epochs=child.PPO_EPOCHS,
        num_minibatches=child.NUM_MINIBATCHES,
    )
    return compiled(
        jaxkd.ppo(
            env, policy, entropy=child.ENTROPY, optimizer=optimizer, shuffle=shuffle, **sizes
        ),
        updates,
    )


def distill(
    updates: int,
    name: str = "CartPole-v1",
    loss=jaxkd.losses.forward_kl(),
    reset_pool: int | None = None,
):
    env = jaxkd.envs.make(name, child.NUM_ENVS, reset_pool=reset_pool)
    teacher, student = (
        jaxkd.networks.mlp(env, child.TEACHER),
        jaxkd.networks.mlp(env, child.STUDENT),
    )
    sizes = dict(unroll_length=child.UNROLL_LENGTH, num_minibatches=child.NUM_MINIBATCHES)
    kd = jaxkd.distill(
        env, student, teacher, losses={"kd": loss}, optimizer=optax.adam(child.KD_RATE), **sizes
    )
    return compiled(kd, updates, teacher.init(jax.random.key(1)))


def mean_mse(student, batch):
    """Squared error of the mean action [L, N], rsl_rl's loss."""
    return jnp.sum(jnp.square(student.policy.mean - batch.teacher.policy.mean), axis=-1)


if __name__ == "__main__":
    works = {
        "ppo": child.Work(ppo),
        "ppo-full-shuffle": child.Work(lambda updates: ppo(updates, "full")),
        "distill": child.Work(distill),
        "distill-reset-pool": child.Work(lambda updates: distill(updates, reset_pool=8)),
        "distill-pendulum": child.Work(lambda updates: distill(updates, "Pendulum-v1", mean_mse)),
    }
    child.main(works, ["jax", "jaxlib", "flax", "optax", "gymnax"])
