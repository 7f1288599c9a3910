"""Running: the same bits on purpose, and programs kept on disk."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxkd

COMPILES = """
import sys, jax, jaxkd
hits = []
note = lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None
jax.monitoring.register_event_listener(note)
print(jaxkd.compile_cache(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
power = jax.jit(lambda x: jax.lax.fori_loop(0, 5, lambda i, y: y @ y, x))
power(jax.numpy.eye(3)).block_until_ready()
print(len(hits))
"""


@pytest.fixture(scope="module")
def ppo():
    env = jaxkd.envs.make("CartPole-v1", 4)
    return jaxkd.ppo(env, jaxkd.networks.mlp(env, (8,)), unroll_length=8)


@pytest.mark.bits
def test_deterministic_is_the_same_run(ppo, key):
    plain, _ = jaxkd.run(ppo, key, 2)
    once, again = (jaxkd.run(ppo, key, 2, deterministic=True)[0] for _ in range(2))
    for a, b, c in zip(
        *(jax.tree.leaves(state.params) for state in (plain, once, again)), strict=True
    ):
        np.testing.assert_array_equal(b, c)
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_deterministic_inside_a_jit_is_refused(ppo, key):
    with pytest.raises(jaxkd.UsageError, match="call run outside of jit"):
        jax.jit(lambda key: jaxkd.run(ppo, key, 1, deterministic=True)[1])(key)


@pytest.mark.slow
def test_lanes_in_groups_are_the_same_lanes(ppo):
    """5 seeds, 2 at once (which does not divide them): all lanes' numbers, same bits among 3."""
    few, many, whole = (
        jaxkd.run(jaxkd.lanes(ppo, at_once=size), jaxkd.seeds(0, n), 1)[0].params
        for size, n in ((2, 3), (2, 5), (None, 5))
    )
    for a, b, c in zip(*map(jax.tree.leaves, (few, many, whole)), strict=True):
        np.testing.assert_array_equal(a[:2], b[:2])
        np.testing.assert_allclose(b, c, atol=1e-5)
    with pytest.raises(jaxkd.UsageError, match="at_once"):
        jaxkd.lanes(ppo, at_once=0)


def test_programs_are_kept_for_the_next_process(tmp_path):
    found = [
        subprocess.run(
            [sys.executable, "-c", COMPILES, tmp_path], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in "12"
    ]
    (folder, first), (same, second) = found
    assert folder == same and os.stat(folder).st_mode & 0o777 == 0o700
    assert (int(first), int(second) > 0) == (0, True)


def test_a_cache_that_others_may_write_to_is_refused(tmp_path):
    os.chmod(jaxkd.compile_cache(tmp_path), 0o777)
    with pytest.raises(jaxkd.UsageError, match="others may write"):
        jaxkd.compile_cache(tmp_path)
    with pytest.raises(jaxkd.UsageError, match="cannot be made"):
        jaxkd.compile_cache("/proc/nowhere")


@pytest.fixture(autouse=True)
def the_cache_from_before():
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
