"""The programs of tests run once or twice: they are compiled for that, and not for speed."""

import os

import numpy as np
import pytest

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


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
