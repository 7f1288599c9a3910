"""Settings of every test: silent rank promotion is an error, and the CPU is two devices."""

import os
from importlib.metadata import version

# XLA's fusion emitters take half of the quick suite's time, all of it compiling; what is slow or
# measured has them. The XLA of jax 0.11 has no older ones to fall back on.
if os.environ.get("JAXKD_TINY") and version("jaxlib") < "0.11":
    flags = os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()

import jax  # noqa: E402, it reads the flags
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)  # before anything uses a backend


@pytest.fixture
def key() -> jax.Array:
    """A typed PRNG key, []."""
    return jax.random.key(0)
