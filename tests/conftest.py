"""Settings of every test: silent rank promotion is an error, and the CPU is two devices."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version

# Most of the quick suite's time is compiling what runs for milliseconds, so it compiles quickly;
# what is slow or measured is compiled as users have it. The fusion emitters of XLA take long even
# so; that of jax 0.11 has no older ones to fall back on.
if os.environ.get("JAXKD_TINY"):
    quickly = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    if version("jaxlib") < "0.11":
        quickly.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quickly]).strip()
    # What one process has compiled, the others of this run need not; a given folder is kept.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        compiled = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxkd-tests-")
        atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402, it reads the flags
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)  # before anything uses a backend


def pytest_collection_finish():
    """What is imported by now stays: the collector, a tenth of the time, looks at the rest only."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture
def key() -> jax.Array:
    """A typed PRNG key, []."""
    return jax.random.key(0)
