"""Settings every test runs under.

They are made here, at import, because the number of devices has to be known before JAX is first
asked for one.
"""

import os

import jax
import pytest

# The tests compile thousands of small programs. XLA's older code generator for CPUs, in one thread,
# takes half the CPU time of the default. jax 0.11 does not have it; set XLA_FLAGS to replace it.
if jax.__version_info__ < (0, 11):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )

# The same eight devices on every machine; `JAX_PLATFORMS=cuda pytest` asks for a real one.
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _quick_programs():
    """Programs that tests start compile with few optimisations, as `quick_compile` does here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


@pytest.fixture
def x64():
    """Double precision, for the tests that claim exactness; single precision is the default."""
    with jax.enable_x64(True):
        yield


def _quick_compile():
    """Compiles with few of XLA's optimisations: the same mathematics in a fifth of the time.

    For tests that compile many tiny programs; what is timed or bit-equal must not use it.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


quick_compile = pytest.fixture(_quick_compile)
quick_compile_of_module = pytest.fixture(_quick_compile, scope="module")  # for its other fixtures


@pytest.fixture
def usual_promotion():
    """Users do not run under strict promotion, which `optax.adam` does not pass."""
    with jax.numpy_dtype_promotion("standard"):
        yield
