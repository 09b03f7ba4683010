"""Mutated files of everything that the library saves: refused by a sentence, or the same content.

`python tests/fuzz_files.py --count 100000` mutates the golden files of `tests/files` in memory:
bits are flipped, bytes cut, spliced and inserted; then also the header's fields are changed,
lengths are lied about and numbers exchanged, with the checksum made anew, as only an attacker
would. A mutant with the old checksum may load only with the old content. One with a new checksum is
another file: it is refused, or is exactly the file that its content is saved as.
Anything but a `ValueError` of ours, more than a second of work or more than a gigabyte is a fault.

`--keep` writes the smallest mutant of every sentence to `tests/attacks`.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import re
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from helpers_files import FOLDER

from jaxcompress.checkpoint import tree_from_bytes, tree_to_bytes
from jaxcompress.checkpoint.tensor_file import DIGITS, START, canonical, digest
from jaxcompress.transforms.recipes import recipe_from_bytes, recipe_to_bytes

ATTACKS = Path(__file__).parent / "attacks"
SECONDS = 1.0
GIGABYTE = 2**30
NAME = "mutant"
"""The files' name in messages."""
PACKAGE = "/jaxcompress/"

LIES = (
    *(None, True, False, 0, 1, -1, 2, 3, 8, 255, 2**31, 2**62, 2**63, 2**64, 10**30, 0.5, 1e300),
    *("", "x", "a/b", "__metadata__", "jax", "U8", "F64", "I32", "C64", "BOOL", "os:system"),
    *("builtins:dict", "jaxcompress.training.state:FitState", "flax.nnx.variablelib:Param"),
    *("jax._src.tree_util:Partial", "HashedArray", "MeshClassifier", "Axis", "Slot", "Transform"),
    *([], [[]], {}, [0], [-1], [1, 2], [2**62, 2**62], ["x", None], {"kind": "list", "items": []}),
    *({"kind": "static"}, {"kind": "array", "holder": "jax"}, {"kind": "function", "name": "f"}),
    *({"call": "identity"}, {"call": "hashed", "keep": 0.5}, {"call": "Fraction", "value": "1e9"}),
)
"""What a field of a header is exchanged for."""


def seeds() -> dict[str, bytes]:
    """The golden files by name."""
    return {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir())}


# --- mutations of bytes ---------------------------------------------------------------------------


def flip(file, rng, others):
    for place in rng.integers(len(file), size=rng.integers(1, 9)):
        file[place] ^= 1 << rng.integers(8)
    return file


def cut(file, rng, others):
    start, end = np.sort(rng.integers(len(file) + 1, size=2))
    return file[:end] if rng.random() < 0.5 else file[:start] + file[end:]


def insert(file, rng, others):
    place, size = rng.integers(len(file) + 1), int(2 ** rng.uniform(0, 10))
    return file[:place] + bytearray(rng.bytes(size)) + file[place:]


def blank(file, rng, others):
    start, size = rng.integers(len(file)), int(2 ** rng.uniform(0, 8))
    file[start : start + size] = bytes(len(file[start : start + size]))
    return file


def splice(file, rng, others):
    other = others[rng.integers(len(others))]
    if rng.random() < 0.5:
        return file[: rng.integers(len(file))] + other[rng.integers(len(other)) :]
    start, size = rng.integers(len(other)), int(2 ** rng.uniform(0, 8))
    place = rng.integers(len(file))
    file[place : place + size] = other[start : start + size]
    return file


def length(file, rng, others):
    value = int(2 ** rng.uniform(0, 64)) if rng.random() < 0.5 else int(rng.integers(2 * len(file)))
    return bytearray(min(value, 2**64 - 1).to_bytes(8, "little")) + file[8:]


BYTES = (flip, flip, cut, insert, blank, splice, length)


# --- mutations of what a file says, with a new checksum -------------------------------------------


def rehashed(file):
    """A file with the checksum of its bytes."""
    file[START : START + DIGITS] = digest(file)
    return file


def parts(file):
    """The header and the numbers of a file."""
    start = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:start]), file[start:]


def joined(header, numbers):
    """A file of a header and numbers, with its checksum."""
    text = text_of(header).encode()
    text += b" " * (-len(text) % 8)
    return rehashed(bytearray(len(text).to_bytes(8, "little") + text) + numbers)


def places_of(value, places):
    """All containers of a JSON value with the keys in them."""
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        places += [(value, key) for key in keys]
        for inner in value.values() if isinstance(value, dict) else value:
            places_of(inner, places)
    return places


def lie(value, rng):
    """Change one field somewhere in a JSON value."""
    places = places_of(value, [])
    container, key = places[rng.integers(len(places))]
    other, other_key = places[rng.integers(len(places))]
    way = rng.integers(7)
    if way == 0:
        container[key] = LIES[rng.integers(len(LIES))]
    elif way == 1 and type(container[key]) is int:
        container[key] += int(rng.choice([-1, 1, 7, -9, 2**31]))
    elif way == 1 and type(container[key]) is str:
        container[key] += "x"
    elif way == 2:
        del container[key]
    elif way == 3 and isinstance(container, list):
        container.insert(key, json.loads(json.dumps(other[other_key])))
    elif way == 3:
        container["more"] = json.loads(json.dumps(other[other_key]))
    elif way == 4:
        container[key] = json.loads(json.dumps(other[other_key]))
    elif way == 5 and isinstance(container, list):
        swap = rng.integers(len(container))
        container[key], container[swap] = container[swap], container[key]
    else:
        container[key] = f"nested {int(2 ** rng.uniform(0, 14))}"
    return value


def nudge(value, rng):
    """Change one plain value to a near one, or to another of its type in the same file."""
    places = [
        (container, key)
        for container, key in places_of(value, [])
        if type(container[key]) in (bool, int, float, str) and key != "kind"
    ]
    container, key = places[rng.integers(len(places))]
    plain = container[key]
    if type(plain) is int and rng.random() < 0.7:
        container[key] += int(rng.choice([-1, 1, 2, 2**31, -plain]))
    else:
        alike = [box[at] for box, at in places if type(box[at]) is type(plain)]
        container[key] = alike[rng.integers(len(alike))]


def text_of(value):
    """JSON with lists in each other, deeper than the json module writes them."""

    def nested(match):
        return "[" * int(match[1]) + "]" * int(match[1])

    return re.sub('"nested ([0-9]+)"', nested, canonical(value))


def lie_in_structure(file, rng, others):
    header, numbers = parts(file)
    structure = json.loads(header["__metadata__"]["jaxcompress"])
    for _ in range(rng.integers(1, 3)):
        (lie if rng.random() < 0.5 else nudge)(structure, rng)
    header["__metadata__"]["jaxcompress"] = text_of(structure)
    return joined(header, numbers)


def lie_in_header(file, rng, others):
    header, numbers = parts(file)
    metadata = header.pop("__metadata__")
    if header:
        lie(header, rng)
    return joined({"__metadata__": metadata} | header, numbers)


def change_numbers(file, rng, others):
    header, numbers = parts(file)
    mutate = (flip, blank, insert, cut)[rng.integers(4)]
    return joined(header, mutate(numbers, rng, others) if numbers else numbers)


def change_text(file, rng, others):
    start = 8 + int.from_bytes(file[:8], "little")
    text = (flip, cut, blank, splice)[rng.integers(4)](file[8 + 27 + DIGITS : start], rng, others)
    text = file[8 : 8 + 27 + DIGITS] + text
    return rehashed(bytearray(len(text).to_bytes(8, "little")) + text + file[start:])


def rehash(file, rng, others):
    file = BYTES[rng.integers(len(BYTES))](file, rng, others)
    return rehashed(file) if len(file) > START + DIGITS else file


SIGNED = (*(lie_in_structure,) * 5, *(lie_in_header,) * 2, change_numbers, change_text, rehash)


def lie_in_recipe(file, rng, others):
    content = lie(json.loads(file), rng)
    if isinstance(content, dict) and rng.random() < 0.9:
        recipe = text_of(content.get("recipe")).encode()
        content["sha256"] = hashlib.sha256(recipe).hexdigest()
    return bytearray(text_of(content).encode())


# --- what becomes of a mutant ---------------------------------------------------------------------


class Slow(BaseException):
    """A file took longer than it may."""


def alarm(signum, frame):
    raise Slow


def load_and_save(name, file):
    """The file that a file's content is saved as."""
    if name.endswith(".json"):
        return recipe_to_bytes(recipe_from_bytes(file, NAME, NET[0]))
    return tree_to_bytes(tree_from_bytes(file, NAME))


NET = [tree_from_bytes((FOLDER / "structure.safetensors").read_bytes(), NAME)]


def content(name, file):
    """What is equal for files of equal content."""
    if name.endswith(".json"):
        return canonical(json.loads(file)["recipe"])
    header, numbers = parts(file)
    text = header.pop("__metadata__")["jaxcompress"]
    # an array that happens to fit may be called a node that is filled with something else
    return text.replace('"kind":"mapped"', '"kind":"compact"'), canonical(header), bytes(numbers)


def outcome(name, mutant, original, signed):
    """Of one mutant the place that refuses it, "same", "valid" or a fault; and the sentence."""
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 10 * SECONDS)
    try:
        back = load_and_save(name, mutant)
    except ValueError as error:
        sentence = str(error)
        if type(error) is not ValueError or not sentence.startswith(NAME):
            return "FAULT not ours", repr(error)
        if time.process_time() - start > SECONDS:
            return "FAULT slow", sentence
        return place_of(error), sentence
    except BaseException as error:
        return f"FAULT {type(error).__name__}", str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return verdict(name, mutant, original, signed, back), ""


def verdict(name, mutant, original, signed, back):
    """Of a mutant that was accepted: "same", "valid" or a fault."""
    recipe = name.endswith(".json")
    if content(name, back) == content(name, original):
        return "same" if signed or recipe or mutant == original else "FAULT accepted"
    if not signed:
        return "FAULT accepted with another content"
    # a recipe may be written by hand, in other words than it is saved in
    saved = load_and_save(name, back) if recipe else mutant
    return "valid" if content(name, back) == content(name, saved) else "FAULT it lies"


def mutants(count, seed):
    """(name, mutant, original, whether the checksum is new), one after the other."""
    files = seeds()
    names = list(files)
    others = [bytearray(file) for file in files.values()]
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        name = names[rng.integers(len(names))]
        original = files[name]
        signed = bool(rng.random() < 0.6)
        if name.endswith(".json"):
            mutate = lie_in_recipe if signed else BYTES[rng.integers(len(BYTES))]
        else:
            mutate = (SIGNED if signed else BYTES)[rng.integers(len(SIGNED if signed else BYTES))]
        yield name, bytes(mutate(bytearray(original), rng, others)), original, signed


def place_of(error):
    """Where in the library a sentence comes from."""
    place = ""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if PACKAGE in frame.filename]
        if own:
            place = f"{own[-1].filename.split(PACKAGE)[1]}, {own[-1].name}"
        error = error.__context__
    return place


def run(count, seed=0):
    """Outcomes by kind, the smallest example of each, and the faults."""
    signal.signal(signal.SIGPROF, alarm)
    kinds, examples, faults = collections.Counter(), {}, []
    for name, mutant, original, signed in mutants(count, seed):
        kind, sentence = outcome(name, mutant, original, signed)
        if kind.startswith("FAULT"):
            faults.append((f"{kind}: {sentence}", name, mutant))
        kinds[kind] += 1
        if kind not in examples or len(mutant) < len(examples[kind][2]):
            examples[kind] = (sentence, name, mutant)
    return kinds, examples, faults


def keep(examples):
    """Write the smallest examples of the sentences, and the sentences."""
    ATTACKS.mkdir(exist_ok=True)
    for old in ATTACKS.iterdir():
        old.unlink()
    table = {}
    for sentence, name, mutant in examples.values():
        if sentence:
            digits = hashlib.sha256(mutant).hexdigest()[:12]
            file = f"{digits}{Path(name).suffix}"
            (ATTACKS / file).write_bytes(mutant)
            table[file] = sentence
    text = json.dumps(dict(sorted(table.items(), key=lambda item: item[1])), indent=1)
    (ATTACKS / "sentences.json").write_text(text + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    kinds, examples, faults = run(options.count, options.seed)
    for kind, number in kinds.most_common():
        print(f"{number:8}  {kind}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > GIGABYTE:
        faults.append((f"FAULT {grown} bytes of memory", "", b""))
    for result, name, mutant in faults[:20]:
        print(result[:300], name, len(mutant))
    refused = sum(number for kind, number in kinds.items() if ", " in kind)
    print(
        f"{options.count} files in {time.perf_counter() - start:.0f} s: {refused} refused, "
        f"{kinds['same']} with the same content, {kinds['valid']} other valid files, "
        f"{len(faults)} faults; {grown / 2**20:.0f} MiB of memory"
    )
    if options.keep:
        keep(examples)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
