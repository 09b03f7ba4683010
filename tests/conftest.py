"""How the suite runs in minutes: programs are compiled cheaply, once for all workers, and by model.

Most of a test's time is tracing and compiling. XLA leaves out most optimisations and generates code
by its plainest emitters (half of the time of a compilation), compiled programs are kept in
`.pytest_cache/compiled` for the other workers and the next run, and the tests of one model share a
worker, in which its network is traced once.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

# one worker a core: more threads would wait for each other; read when NumPy is imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# a loop that jax 0.5.3 reads back from its cache of programs gives zeros
if tuple(map(int, version("jax").split(".")[:2])) >= (0, 8):
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled")
    )
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
CHEAP_CODE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def pytest_configure(config):
    """Workers and programs that tests start inherit XLA's flags, where this XLA has them."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        set_xla_flags()


def set_xla_flags() -> None:
    """Compile cheaply, unless flags are given or this XLA does not have these."""
    if "XLA_FLAGS" in os.environ:
        return
    # XLA ends the process at a flag that it does not have, so another process asks
    flags = os.environ | {"XLA_FLAGS": CHEAP_CODE}
    asked = [sys.executable, "-c", "import jax; jax.devices()"]
    if subprocess.run(asked, env=flags, capture_output=True, check=False).returncode == 0:
        os.environ["XLA_FLAGS"] = CHEAP_CODE


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run what takes long")


def pytest_collection_modifyitems(config, items):
    """Tests of one model go to one worker; what is slow runs with --slow alone."""
    from helpers_models import MODELS

    slow = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(slow)
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if isinstance(name, str) and name in MODELS:
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture
def optimised():
    """Programs as users compile them: for bounds that are a few roundings away."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def model(tmp_path):
    """A folder with a BERT of one layer and a tokenizer of letters."""
    from helpers_bert import folder, make

    (tmp_path / "model").mkdir()
    path = folder(tmp_path / "model", config={"num_hidden_layers": 1})
    make().save(str(path / "tokenizer.json"))
    return path


@pytest.fixture
def documents(tmp_path):
    """A folder of 40 short texts in its words."""
    import numpy as np
    from helpers_bert import LETTERS

    path = tmp_path / "documents"
    path.mkdir()
    rng = np.random.default_rng(0)
    words = ["bag", "face", "dead", "deaf", "head", "fade", "bad", "cab", "abc", "head"]
    for index in range(40):
        (path / f"{index:02}.txt").write_text(
            " ".join(rng.choice(words, 5)) + "".join(rng.choice(list(LETTERS), 2))
        )
    return path
