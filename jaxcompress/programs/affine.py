"""Values as affine functions of an earlier value, with polynomials of parameters as coefficients.

Between a contraction and the next nonlinearity a program adds, multiplies and divides by
parameters, in any order and with constants folded or not. Every such value is `x a + b`, with x the
value where this began. Written as polynomials, equal functions have equal coefficients, and their
form tells what they are: `networks/batch_norms.py` reads norms off them. Costs one pass over the
steps, on no numbers.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TypeAlias, Union

import numpy as np

from jaxcompress.programs.algebra import Dim, find, several
from jaxcompress.programs.arithmetic import scalar
from jaxcompress.programs.facts import varies
from jaxcompress.programs.program import Program, Step, Value

Base: TypeAlias = Union[str, int, "Polynomial"]
"""A leaf by name, another number made of parameters by its value's id, or a sum under a root."""

Monomial: TypeAlias = frozenset[tuple[Base, Fraction]]
"""Powers of bases, multiplied; the empty one is 1."""


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """A sum of monomials, each with a coefficient that is not zero.

    Attributes:
        terms: the coefficients by monomial, as a set of pairs, so that a polynomial hashes.
    """

    terms: frozenset[tuple[Monomial, float]] = frozenset()

    @classmethod
    def of(cls, terms: Mapping[Monomial, float]) -> Polynomial:
        """A polynomial of coefficients by monomial."""
        return cls(frozenset((key, value) for key, value in terms.items() if value))

    @classmethod
    def base(cls, base: Base, power: Fraction | int = 1) -> Polynomial:
        """A power of one base."""
        return cls.of({frozenset({(base, Fraction(power))}): 1.0})

    @classmethod
    def number(cls, number: float) -> Polynomial:
        """A constant."""
        return cls.of({frozenset(): number})

    def __add__(self, other: Polynomial) -> Polynomial:
        terms = dict(self.terms)
        for key, value in other.terms:
            terms[key] = terms.get(key, 0.0) + value
        return Polynomial.of(terms)

    def __sub__(self, other: Polynomial) -> Polynomial:
        return self + other * Polynomial.number(-1.0)

    def __mul__(self, other: Polynomial) -> Polynomial:
        total = Polynomial()
        for left, first in self.terms:
            products = {_product(left, right): first * second for right, second in other.terms}
            total = total + Polynomial.of(products)
        return total

    def __truediv__(self, other: Polynomial) -> Polynomial:
        return self * other.power(Fraction(-1))

    def power(self, exponent: Fraction) -> Polynomial:
        """A power; of a sum, or a root whose sign would be lost, as a base of its own."""
        if len(self.terms) == 1:
            ((monomial, coefficient),) = self.terms
            simple = all(abs(power) <= 1 for _, power in monomial)
            if coefficient > 0 and (exponent.denominator == 1 or simple):
                powers = frozenset((base, power * exponent) for base, power in monomial)
                return Polynomial.of({powers: coefficient ** float(exponent)})
        if exponent == 2:
            return self * self
        return self if exponent == 1 else Polynomial.base(self, exponent)


def _product(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for base, power in right:
        powers[base] = powers.get(base, Fraction(0)) + power
    return frozenset((base, power) for base, power in powers.items() if power)


ONE, ZERO = Polynomial.number(1.0), Polynomial()


@dataclasses.dataclass(frozen=True)
class Affine:
    """A value as `source * scale + shift`.

    Attributes:
        source: the value where this began.
        scale: what it was multiplied by since.
        shift: what was added to that.
        channel: the dimension along which these vary, None for numbers.
        steps: how many operations changed it.
        alone: whether neither the source nor a value between has another use.
    """

    source: Value
    scale: Polynomial = ONE
    shift: Polynomial = ZERO
    channel: Dim | None = None
    steps: int = 0
    alone: bool = True


LAYOUTS = {"reshape", "broadcast_in_dim", "squeeze", "expand_dims", "transpose"}
LAYOUTS |= {"convert_element_type", "reduce_precision", "stop_gradient", "copy", "copy_p"}
"""Primitives that change the layout or the dtype of a value alone."""

ARITHMETIC: dict[str, Callable[[Polynomial, Polynomial], Polynomial]] = {
    "add": operator.add,
    "add_any": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}
ROOTS = {"sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2), "square": Fraction(2)}


class AffineValues:
    """The affine form of every value of an analysed program, and the values that parameters make.

    Attributes:
        forms: of the values that depend on the network's inputs, by id.
        numbers: polynomials of the others, by id; a value without one is not in it.
        opaque: numbers made of parameters in another way, which are bases by their ids.
        uses: how often each value is used, by id.
    """

    def __init__(
        self, program: Program, leaves: Mapping[str, Value], uses: Mapping[int, int]
    ) -> None:
        self.forms: dict[int, Affine] = {}
        self.numbers = {id(value): Polynomial.base(name) for name, value in leaves.items()}
        self.opaque: dict[int, Value] = {}
        self.uses = uses
        for step in program.steps:
            if step.inputs and step.outputs:
                self._read(step)

    def of(self, value: Value) -> Affine:
        """The form of a value that depends on inputs; by default it is where one begins."""
        return self.forms.get(id(value), Affine(value))

    def number(self, value: Value) -> Polynomial | None:
        """The polynomial of a value that depends on no inputs, or None."""
        constant = scalar(value)
        if constant is not None:
            return Polynomial.number(constant)
        array = getattr(value, "array", None)  # a constant that the function closes over
        if array is not None and np.size(array) == 1 and np.isrealobj(array):
            return Polynomial.number(float(np.asarray(array).reshape(())))
        return self.numbers.get(id(value))

    def _read(self, step: Step) -> None:
        (out, *_) = step.outputs
        if not out.data:
            number = self._number(step)
            if number is None and out.shape == (1,) * len(out.shape):
                self.opaque[id(out)] = out
                number = Polynomial.base(id(out))
            if number is not None:
                self.numbers[id(out)] = number
            return
        form = self._form(step)
        if form is not None:
            self.forms[id(out)] = form

    def _number(self, step: Step) -> Polynomial | None:
        """What a step gives of parameters alone."""
        operands = [self.number(value) for value in step.inputs]
        known = [operand for operand in operands if operand is not None]
        if len(known) < len(operands):
            return None
        if step.name in LAYOUTS:
            return known[0]
        if step.name in ARITHMETIC:
            return ARITHMETIC[step.name](*known)
        if step.name == "neg":
            return ZERO - known[0]
        power = _power(step)
        return None if power is None else known[0].power(power)

    def _form(self, step: Step) -> Affine | None:
        """What a step gives of an affine function of activations and of parameters."""
        (out, *_) = step.outputs
        data = [value for value in step.inputs if value.data]
        if len(data) != 1:
            return None
        form = self.of(data[0])
        alone = form.alone and self.uses.get(id(data[0]), 0) == 1
        if step.name in LAYOUTS or step.name == "neg":
            kept = form.channel is None or position_of(out, form.channel) is not None
            sign = Polynomial.number(-1.0 if step.name == "neg" else 1.0)
            scale, shift = form.scale * sign, form.shift * sign
            return (
                Affine(form.source, scale, shift, form.channel, form.steps, alone) if kept else None
            )
        if step.name not in ARITHMETIC or len(step.inputs) != 2:
            return None
        left, right = step.inputs
        other = right if left.data else left
        number, places = self.number(other), [i for i in range(len(out.shape)) if varies(other, i)]
        if number is None or len(places) > 1 or (step.name == "div" and right.data):
            return None
        channel = form.channel if not places else out.dims[places[0]]
        if channel is None and places:
            return None
        if (
            form.channel is not None
            and channel is not None
            and find(form.channel) is not find(channel)
        ):
            return None
        combined = _combined(step.name, form, number, first=left.data)
        return dataclasses.replace(combined, channel=channel, steps=form.steps + 1, alone=alone)


def _combined(name: str, form: Affine, number: Polynomial, *, first: bool) -> Affine:
    """A form added to a number, multiplied or divided by it."""
    if name in ("mul", "div"):
        factor = number if name == "mul" else number.power(Fraction(-1))
        return dataclasses.replace(form, scale=form.scale * factor, shift=form.shift * factor)
    sum_of = ARITHMETIC[name]
    if first:
        return dataclasses.replace(form, shift=sum_of(form.shift, number))
    scale, shift = sum_of(ZERO, form.scale), sum_of(number, form.shift)
    return dataclasses.replace(form, scale=scale, shift=shift)


def _power(step: Step) -> Fraction | None:
    """The exponent of a power, or None for another primitive."""
    if step.name == "integer_pow":
        return Fraction(step.params["y"])
    if step.name == "pow":
        exponent = scalar(step.inputs[1])
        return None if exponent is None else Fraction(exponent).limit_denominator(16)
    return ROOTS.get(step.name)


def position_of(value: Value, dim: Dim) -> int | None:
    """The position of a dimension in a value, or None."""
    places = [
        index
        for index, own in enumerate(value.dims)
        if own is not None and several(value.shape[index]) and find(own) is find(dim)
    ]
    return places[0] if len(places) == 1 else None
