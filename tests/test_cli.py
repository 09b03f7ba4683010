"""The command line: the tour's pieces, its table and picture, and bad arguments."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxcompress as jc
from jaxcompress.cli import main
from jaxcompress.examples import tour

SOME = ["hashed", "factored", "magnitude pruning", "plain smaller net"]


@pytest.mark.parametrize("names", [SOME, pytest.param(None, marks=pytest.mark.slow)])
def test_the_tour_at_one_keep(names, tmp_path):
    run = tour.run(0, [1 / 8], names=names, progress=False)
    assert run.dense.after > 0.96
    cells = {cell.recipe: cell for cell in run.cells}
    assert len(cells) == len(names or range(9))
    for cell in cells.values():
        assert cell.numbers <= run.dense.numbers / 8 + 1
        assert cell.after > 0.9
    assert cells["factored"].before > cells["magnitude pruning"].before
    text = str(run)
    assert "1/8" in text
    assert all(name in text for name in cells)
    run.frontier().plot(path=tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 10_000


def test_magnitude_pruning_counts_its_indices():
    rng = np.random.default_rng(0)

    def layer(m, n):
        return {"kernel": rng.normal(size=(m, n)), "bias": np.zeros(n)}

    params = {"a": layer(40, 30), "b": layer(30, 10)}
    masks, numbers = tour.prune_magnitude(params, 200)
    kept = sum(int(mask["kernel"].sum()) for mask in masks.values())
    assert numbers == int(kept + min(kept / 2, 1500 / 32) + 40) <= 200


@pytest.mark.parametrize("keep", [1 / 32, pytest.param(1 / 2, marks=pytest.mark.slow)])
def test_recipes_meet_the_budget(keep):
    (x, _), _ = tour.load_digits(0)
    params = tour.MLP(tour.WIDTHS).init(jax.random.key(0), x[:1])["params"]
    net = jc.trace(lambda p, x: tour.MLP(tour.WIDTHS).apply({"params": p}, x), params, x[:1])
    moments = jc.calibrate(net, params, [x], progress=False)
    for name, recipe in tour.recipes(net, params, moments).items():
        small = recipe(keep)(params, moments)
        assert jc.stored_numbers(small) <= keep * jc.stored_numbers(params), name
        assert net(small, x[:3]).shape == (3, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["fly"], "invalid choice"),
        (["tour", "--seed", "-1"], "expected a whole number"),
        (["tour", "--out", "picture.txt"], "ends in .png"),
        (["tour", "--out", "/no/such/folder/a.png"], "no folder"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_help_and_import_are_quick_and_touch_no_device():
    done = subprocess.run(
        [sys.executable, "-m", "jaxcompress", "tour", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--out" in done.stdout
    code = (
        "import jaxcompress, jax; from jax._src import xla_bridge; assert not xla_bridge._backends"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
