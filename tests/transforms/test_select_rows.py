"""Rows that stay are the same numbers; what does not fit is named before anything is done."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcompress as jc

PARAMS = {"words": {"embedding": jnp.arange(12.0).reshape(4, 3)}, "bias": jnp.ones(3)}


def test_rows_that_stay_are_the_same():
    cut = jc.select_rows("**/embedding", np.array([1, 3]))
    small = cut(PARAMS)
    np.testing.assert_array_equal(
        small["words"]["embedding"], PARAMS["words"]["embedding"][jnp.array([1, 3])]
    )
    np.testing.assert_array_equal(small["bias"], PARAMS["bias"])
    assert cut == jc.select_rows("**/embedding", [1, 3])
    both = jc.chain(cut, jc.at("**/embedding", jc.factored(keep=5 / 6)))(PARAMS)
    assert both["words"]["embedding"].shape == (2, 3)
    assert jc.stored_numbers(both) < jc.stored_numbers(PARAMS)


@pytest.mark.parametrize("rows", [[], [2, 1], [1, 1], [-1, 0], [0.5], [[0, 1]]])
def test_rows_are_sorted_whole_numbers(rows):
    with pytest.raises(ValueError, match="sorted whole numbers"):
        jc.select_rows("words", rows)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="row 4 is requested"):
        jc.select_rows("words/embedding", [4])(PARAMS)
    with pytest.raises(ValueError, match="matches no leaf; there are: bias, words/embedding"):
        jc.select_rows("other", [0])(PARAMS)
    with pytest.raises(ValueError, match="is compact: select rows first"):
        jc.select_rows("words", [0])(jc.hashed(keep=1 / 2)({"words": jnp.ones((4, 4))}))
