"""Rejax: PPO in its CartPole (gymnax below 1). `jax.jit(algo.train)`, as its README says.

Its callback of evaluation is replaced by one that does nothing and is called once, at the end; the
initial evaluation is skipped. Its rows are fully shuffled, its gradient clip is by element, actor
and critic have an Adam each: that is how it is made.
"""

import itertools
import time

import child
import jax
from rejax import PPO


def algorithm(steps: int, learning_rate: float):
    return PPO.create(
        env="CartPole-v1",
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": child.TEACHER},
        num_envs=child.NUM_ENVS,
        num_steps=child.UNROLL_LENGTH,
        num_epochs=child.PPO_EPOCHS,
        num_minibatches=child.NUM_MINIBATCHES,
        learning_rate=learning_rate,
        max_grad_norm=child.CLIP_NORM,
        ent_coef=child.ENTROPY,
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
    )


def ppo(updates: int):
    algo = algorithm(updates * child.STEPS, child.PPO_RATE).replace(
        eval_callback=lambda algo, state, rng: ()
    )
    seeds, began = itertools.count(), time.perf_counter()
    program = jax.jit(algo.train).lower(jax.random.PRNGKey(0)).compile()
    return lambda: jax.block_until_ready(
        program(jax.random.PRNGKey(next(seeds)))
    ), time.perf_counter() - began


def verify() -> dict:
    """Mean return of its own 128 episodes after training, actions sampled, at the learning rate of
    its own configs/gymnax/cartpole.yaml.
    """
    steps = child.PPO_TRAINING // child.STEPS * child.STEPS
    _, (_, returns) = jax.jit(algorithm(steps, 7.5e-4).train)(jax.random.PRNGKey(0))
    reached = float(returns[-1].mean())
    return {"return": reached, "learnt": reached >= child.PPO_GOAL}


if __name__ == "__main__":
    child.main(
        {"ppo": child.Work(ppo, verify)}, ["rejax", "jax", "jaxlib", "flax", "optax", "gymnax"]
    )
