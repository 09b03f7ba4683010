"""Evaluations of one compaction on random examples of each stratum, in rounds.

The last round is a simple random sample of the examples that were unevaluated before it, stratum by
stratum, on which estimates rest. Costs the compaction's logits on those examples.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm.auto import tqdm

from jaxcompress.classifiers.active_set import ActiveSet
from jaxcompress.classifiers.margins import Apply, is_right, logits_of, signed_margins
from jaxcompress.classifiers.sampling import Strata, sizes_of

CALLER = "rank_compactions"


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A compaction to be evaluated.

    Attributes:
        name: its name.
        apply: `apply(x) -> logits`.
        active: the original's margins on the examples.
        batch_size: examples a call.
        bound: a proven bound on the movement of any logit, or None.
    """

    name: str
    apply: Apply
    active: ActiveSet
    batch_size: int
    bound: float | None

    def uncertain(self, strata: Strata) -> Strata:
        """The examples of strata whose predictions the proven bound leaves open."""
        if self.bound is None:
            return strata
        certain = np.abs(self.active.margins) > 2 * (self.bound + self.rounding)
        return [part[~certain[part]] for part in strata]

    @property
    def rounding(self) -> float:
        """The possible movement of a logit by rounding alone, in float32."""
        return 1e-5 * float(np.abs(self.active.logits).max())

    def logits(
        self, index: Int[np.ndarray, " n"], bar: tqdm | None
    ) -> Float[np.ndarray, "n classes"]:
        """The logits of some examples, refused if they do not fit the original's or the bound."""
        name, original = f"{CALLER}: {self.name!r}", self.active.logits[index]
        logits = logits_of(name, self.apply, self.active.x, index, self.batch_size, bar)
        if logits.shape != original.shape:
            raise ValueError(
                f"{name} gives {logits.shape[1]} classes, expected the original's "
                f"{original.shape[1]}"
            )
        if self.bound is not None:
            moved = np.abs(logits - original).max()
            # negated, so that NaN exceeds the bound, too
            if not moved <= self.bound + self.rounding:
                raise ValueError(
                    f"{name} is certified to move logits by {self.bound:g} at most; one moved by "
                    f"{moved:g}"
                )
        return logits


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A compaction's predictions on the examples evaluated so far.

    Attributes:
        candidate: the compaction.
        pool: the examples of each stratum that its proven bound leaves open.
        index: the evaluated examples.
        right: whether the label is predicted there.
        logits: there.
        movement: the mean movement of the signed margins there.
        prior: the movement that was known before the last round.
        last: the examples of each stratum evaluated in the last round.
    """

    candidate: Candidate
    pool: Strata
    index: Int[np.ndarray, " evaluated"]
    right: Bool[np.ndarray, " evaluated"]
    logits: Float[np.ndarray, "evaluated classes"]
    movement: float
    prior: float
    last: Strata

    @property
    def active(self) -> ActiveSet:
        """The original's margins on the examples."""
        return self.candidate.active

    def positions(self) -> Int[np.ndarray, " n"]:
        """The position of each example among the evaluated ones, or -1."""
        position = np.full(len(self.active), -1)
        position[self.index] = np.arange(len(self.index))
        return position

    def unevaluated(self) -> Strata:
        """The unevaluated examples of each stratum, in its random order."""
        position = self.positions()
        return [part[position[part] < 0] for part in self.pool]

    def extended(
        self, strata: Strata, counts: Int[np.ndarray, " strata"], bar: tqdm | None
    ) -> Evaluation:
        """With one more round: the first examples of each stratum."""
        last = [part[:count] for part, count in zip(strata, counts, strict=True)]
        index = np.concatenate([*last, np.array([], np.int64)])
        if not len(index):
            return dataclasses.replace(self, prior=self.movement, last=last)
        labels = self.active.labels[index]
        logits = self.candidate.logits(index, bar)
        # a logit that is not finite counts as an infinite movement
        with np.errstate(invalid="ignore"):
            shift = np.abs(signed_margins(logits, labels) - self.active.margins[index])
        mean = float(np.where(np.isfinite(shift), shift, np.inf).mean())
        before, new = len(self.index), len(index)
        return dataclasses.replace(
            self,
            index=np.concatenate([self.index, index]),
            right=np.concatenate([self.right, is_right(logits, labels)]),
            logits=np.concatenate([self.logits, logits]),
            movement=(before * self.movement + new * mean) / (before + new),
            prior=self.movement,
            last=last,
        )


def first_round(
    candidate: Candidate, counts: Int[np.ndarray, " strata"], bar: tqdm | None
) -> Evaluation:
    """Evaluate the first examples of each stratum, those that the proven bound leaves open."""
    active = candidate.active
    heads = [part[:count] for part, count in zip(active.strata, counts, strict=True)]
    heads = candidate.uncertain(heads)  # counts are the same for all candidates, bounds are not
    start = Evaluation(
        candidate,
        pool=candidate.uncertain(active.strata),
        index=np.array([], np.int64),
        right=np.array([], bool),
        logits=active.logits[:0],
        movement=active.tolerance,
        prior=active.tolerance,
        last=[],
    )
    return start.extended(heads, sizes_of(heads), bar)
