"""Changes of meaning are where they should be; the list of equivalent ones is of this source."""

from pathlib import Path

import pytest
from helpers_mutants import compiles, mutants
from mutations import EQUIVALENT, reasons

SOURCE = '''
SIZE = 3 + 4

@decorated(1)
def f(x: "a + b", *, axis=0, progress=True) -> int:
    """Of 1 and 2."""
    check(x)
    if x.ndim < 2:
        raise ValueError(f"{x.ndim + 1} of" + str(2))
    x = jnp.sqrt(x)
    warnings.warn("a" + str(1 + 1))
    with tqdm(total=len(x) + 1) as bar:
        bar.update(len(x) - 1)
    return -x.T @ np.sum(x, axis=axis, precision="high") if x is not None else x

def __repr__(self):
    return f(1 + 1)
'''

EXPECTED = {
    "check(x) -> pass",
    "x.ndim < 2 -> (x.ndim <= 2)",
    "x.ndim < 2 -> False",
    "2 -> 3",
    "x = jnp.sqrt(x) -> pass",
    "jnp.sqrt(x) -> x",
    "-x.T -> x.T",
    "x.T -> x",
    "np.sum(x, axis=axis, precision=\"high\") -> np.mean(x, axis=axis, precision='high')",
    "np.sum(x, axis=axis, precision=\"high\") -> np.sum(x, precision='high')",
    "x is not None -> (x is None)",
    "-> x",
}


def test_changes_are_of_meaning():
    made = [mutant for mutant in mutants("p/room/file.py", SOURCE) if compiles(mutant, SOURCE)]
    texts = {mutant.key.split(": ", 1)[1] for mutant in made}
    choices = {text for text in texts if " if x is not None else " in text}
    assert len(choices) == 2
    assert texts - choices == EXPECTED - {"-> x"}
    assert {mutant.function for mutant in made} == {"f"}
    assert {mutant.room for mutant in made} == {"room"}
    for mutant in made:
        assert SOURCE.splitlines()[mutant.line - 1].count(mutant.before.splitlines()[0])


@pytest.mark.parametrize("file", sorted({key.split(" ")[0] for key in reasons()}))
def test_equivalent_changes_are_of_this_source(file):
    """An entry whose text is gone is to be deleted, or told anew."""
    root = Path(__file__).parents[1]
    made = {mutant.key for mutant in mutants(file, (root / file).read_text())}
    missing = {key for key in reasons() if key.startswith(f"{file} ")} - made
    assert not missing, f"{EQUIVALENT.name} lists changes that are no longer possible"
