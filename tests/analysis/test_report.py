"""The report's figures are right, and the frontier is the measured one."""

import jax.numpy as jnp
import numpy as np
import pytest
from laws import matrix, moments, weighted_error

import jaxcompress as jc

PARAMS = {"a": {"kernel": matrix(32, 16), "bias": jnp.ones(16)}, "b": {"kernel": matrix(16, 4)}}


def test_report():
    metric = moments(32)
    small = jc.at("a/kernel", jc.factored(keep=1 / 2))(PARAMS)

    def net(p, x):
        return (x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]

    report = jc.report(PARAMS, small, net, jnp.ones((8, 32)), moments={"a": {"kernel": metric}})
    rows = {row.leaf: row for row in report.rows}
    row = rows["a/kernel"]
    array = small["a"]["kernel"]
    assert row.numbers == (512, array.stored_numbers)
    assert row.nbytes == (2048, 4 * (array.rank * (48 - array.rank)) + 2)
    whole = weighted_error(PARAMS["a"]["kernel"], 0)
    gap = weighted_error(PARAMS["a"]["kernel"], array.materialize())
    assert row.error == pytest.approx((gap / whole) ** 0.5, rel=1e-5)
    weighted = weighted_error(PARAMS["a"]["kernel"], array.materialize(), metric)
    assert row.output_error == pytest.approx(
        (weighted / weighted_error(PARAMS["a"]["kernel"], 0, metric)) ** 0.5, rel=1e-4
    )
    assert row.flops[0] == pytest.approx(2 * 512, rel=0.02)
    assert row.flops[1] == pytest.approx(2 * array.rank * (48 - array.rank), rel=0.03)
    assert rows["b/kernel"].form == "dense"
    assert rows["b/kernel"].error == 0
    assert rows["a/bias"].flops is None
    assert report.numbers == (592, jc.stored_numbers(small))
    assert report.net_flops[0] > report.net_flops[1] > 0
    text = str(report)
    assert "rank" in text
    assert f"{report.numbers[1]:,}" in text.splitlines()[-1]
    assert report._repr_html_().count("<tr>") == 5
    assert f"1/{592 / report.numbers[1]:.3g}" in text.splitlines()[-1]
    assert "unchanged" in str(jc.report(PARAMS, PARAMS)).splitlines()[-1]
    # a metric is of a matrix's inputs: for a bias there is none, whatever is given
    bias = {"a": {"kernel": metric, "bias": np.ones(16)}}
    rows = {row.leaf: row for row in jc.report(PARAMS, small, moments=bias).rows}
    assert rows["a/bias"].output_error is None
    assert rows["a/kernel"].output_error == pytest.approx(row.output_error)
    with pytest.raises(ValueError, match="leaves of one tree"):
        jc.report(PARAMS, {"a": 1})


def test_frontier(tmp_path):
    def evaluate(p):
        return -weighted_error(PARAMS["a"]["kernel"], jc.materialize(p)["a"]["kernel"])

    recipes = {
        "factored": lambda keep: jc.at("a/kernel", jc.factored(keep)),
        "hashed": lambda keep: jc.at("a/kernel", jc.hashed(keep)),
    }
    curve = jc.analysis.frontier(recipes, PARAMS, evaluate, [1 / 2, 1 / 4, 1 / 64], progress=False)
    assert len(curve.points) == 6
    assert curve.recipes == ("factored", "hashed")
    assert curve.points[2].quality is None
    assert "least keep" in curve.points[2].problem
    assert curve.points[0].quality > curve.points[1].quality
    assert "keep 1/64" in str(curve)
    assert "a/kernel: rank 1 takes" in str(curve)
    assert curve.baseline == 0
    curve.plot(path=tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 5_000
    assert "<td>hashed</td>" in curve._repr_html_()
    with pytest.raises(ValueError, match="matches no leaf"):
        jc.analysis.frontier(
            {"typo": lambda keep: jc.at("c", jc.hashed(keep))},
            PARAMS,
            evaluate,
            [1 / 2],
            progress=False,
        )
    with pytest.raises(TypeError, match="expected a transform"):
        jc.analysis.frontier({"none": lambda keep: None}, PARAMS, evaluate, [1 / 2], progress=False)
    assert np.isfinite(curve.total)
