"""Settings of every test: silent rank promotion is an error, and the CPU is two devices."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)  # before anything uses a backend


@pytest.fixture
def key() -> jax.Array:
    """A typed PRNG key, []."""
    return jax.random.key(0)
