"""One row of turns.py in a process of its own, whose jaxkd is the one on PYTHONPATH.

It imports jaxkd alone, and of that only what every commit has. Compiles, prints the processor
seconds that took, then answers each line it is sent with the seconds of one call.
"""

import sys
import time

import jax
import optax

import jaxkd

T = 32
ADAM = optax.adam(1e-3)
PPO_ADAM = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(2.5e-4, eps=1e-5))


def networks_for(env) -> tuple:
    """(teacher, student of 1/15)."""
    if env.name.endswith("MinAtar"):
        return jaxkd.networks.cnn(env), jaxkd.networks.cnn(env, (4,), (32,))
    return jaxkd.networks.mlp(env, (64, 64), separate=True), jaxkd.networks.mlp(env, (44,))


def algorithm(method: str, name: str, num_envs: int):
    """(the algorithm, its teacher's parameters or nothing)."""
    env = jaxkd.envs.make(name, num_envs)
    big, small = networks_for(env)
    if method == "distillation":
        kl = {"kl": jaxkd.losses.forward_kl()}
        kd = jaxkd.distill(env, small, big, losses=kl, optimizer=ADAM, unroll_length=T)
        return kd, (big.init(jax.random.key(1)),)
    if method == "ppo":
        return jaxkd.ppo(env, big, optimizer=PPO_ADAM, unroll_length=T), ()
    length = int(method.removeprefix("lstm"))
    lstm = jaxkd.networks.lstm(env, (32,), units=32)
    settings = dict(optimizer=PPO_ADAM, unroll_length=T, sequence_length=length)
    return jaxkd.ppo(env, lstm, **settings), ()


def main(method: str, name: str, num_envs: str, num_seeds: str, updates: str) -> None:
    began = time.process_time()
    made, inputs = algorithm(method, name, int(num_envs))
    keys = jaxkd.seeds(0, int(num_seeds))

    def train(keys, inputs):
        run = lambda key: jaxkd.run(made, key, int(updates), *inputs)
        return jax.vmap(run)(keys)

    program = jax.jit(train).lower(keys, inputs).compile()
    print(time.process_time() - began, flush=True)
    jax.block_until_ready(program(keys, inputs))
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        jax.block_until_ready(program(keys, inputs))
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
