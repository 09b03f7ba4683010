"""What the compression of an encoder will cost, from a few timed batches, and bounds on it.

Training takes the minutes that were asked for. Everything else is counted in tokens that pass the
large encoder, `seconds = tokens * seconds per token + programs * seconds per compilation`, and is
bounded by fewer tokens where the machine is slow. Only the index of all passages, which is part of
the result, grows with the documents. Costs the compilation of one batch and three runs of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Int, PyTree
from tqdm.auto import tqdm

from jaxcompress.documents.batches import buckets

TRAINING_TOKENS = 2_000_000
"""The largest number of training tokens, since their hidden states are stored in a file."""
CALIBRATION = 20_000
"""Tokens for the moments of activations."""
TRIAL = 6_000
"""Tokens on which candidate layers are compared."""
JUDGED = 2_000
"""The largest number of passages among which those of held-out short texts are searched."""
ALLOWED = 300.0
"""Seconds that pruning and judging may take each, or the training time where that is longer."""
LEAST = 1 / 4
"""The smallest share of their tokens to which they are bounded."""

MOMENTS = 3
"""Forward passes that the moments and the sensitivity of a token cost, about."""
GRADIENT = 3
"""Compilations of a forward pass that one of a gradient or of moments costs, about."""
CLUSTERING = 200_000
"""Tokens through the encoder that cost as much as the clustering of its matrices, about."""
TIMED = 16 + 32 * 128
"""Tokens of the batches that are timed for the report."""
RUNS = 20
"""Runs that are timed, at most."""
TIMING = 10.0
"""Seconds after which no further run is timed, for one shape of batches."""
SAMPLE = 1_024
"""Tokens of the batch that is timed for the estimate."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """The measured speed of an encoder.

    Attributes:
        token: seconds of a forward pass per token.
        program: seconds to compile the forward pass for one shape of batches.
    """

    token: float
    program: float


def measure(
    apply: Callable[..., jax.Array],
    params: PyTree,
    ids: Sequence[Int[np.ndarray, " tokens"]],
    longest: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Time an encoder on a batch of the most common shape.

    Args:
        apply: `apply(params, ids, mask)`.
        params: its parameters.
        ids: the token ids of texts.
        longest: the encoder's maximum length.
        clock: gives seconds.
    """
    batches = buckets(ids, tokens=SAMPLE, longest=longest)
    shapes = [batch.ids.shape for batch in batches]
    common = max(set(shapes), key=shapes.count)
    batch, run, seconds = batches[shapes.index(common)], jax.jit(apply), []
    for _ in range(4):  # the first one compiles
        start = clock()
        jax.block_until_ready(run(params, *batch.inputs))
        seconds.append(clock() - start)
    once = float(np.median(seconds[1:]))
    return Speed(once / batch.ids.size, max(seconds[0] - once, 0.0))


@dataclasses.dataclass(frozen=True)
class Job:
    """The amounts that determine the time of a job.

    Attributes:
        minutes: of training.
        candidates: layers whose removal is tried, one after another.
        layers: layers that are removed.
        work: the time of the small encoder as a share of the large one's.
        training: tokens of the training texts.
        passages: the number of passages.
        tokens: their tokens.
        shapes: shapes of batches.
    """

    minutes: float
    candidates: int
    layers: int
    work: float
    training: int
    passages: int
    tokens: int
    shapes: int


@dataclasses.dataclass(frozen=True)
class Effort:
    """Bounds of what a job does, in tokens, and of the passages that it judges.

    Attributes:
        trial: tokens on which candidate layers are compared.
        calibration: tokens for the moments of activations.
        teacher: tokens of which the large encoder's hidden states are stored.
        judged: passages among which those of held-out short texts are searched.
    """

    trial: int = TRIAL
    calibration: int = CALIBRATION
    teacher: int = TRAINING_TOKENS
    judged: int = JUDGED


def bounded(speed: Speed, job: Job) -> Effort:
    """The effort at which no part but the index takes much longer than the training.

    Args:
        speed: of the large encoder.
        job: the amounts.

    Returns:
        At most the default effort. The large encoder's outputs take no longer than training on
        them, and pruning and judging at most that or `ALLOWED` seconds, down to a share `LEAST` of
        their tokens.

    Example:
        >>> from jaxcompress.documents.estimate import Job, Speed, bounded
        >>> job = Job(2.0, 11, 2, 0.4, 10**6, 10**5, 10**7, 5)
        >>> bounded(Speed(1e-4, 1.0), job)
        Effort(trial=6000, calibration=20000, teacher=1200000, judged=2000)
        >>> bounded(Speed(1e-2, 9.0), job)
        Effort(trial=1500, calibration=5000, teacher=20000, judged=500)
    """
    learning = 60 * job.minutes
    allowed = max(learning, ALLOWED)
    pruning = speed.token * (TRIAL * (job.candidates + 1) + 2 * MOMENTS * CALIBRATION)
    judging = speed.token * JUDGED * job.tokens / max(job.passages, 1)
    prune, judge = (
        min(max(allowed / max(seconds, 1e-9), LEAST), 1.0) for seconds in (pruning, judging)
    )
    teacher = min(max(learning / max(speed.token, 1e-12), CALIBRATION), TRAINING_TOKENS)
    return Effort(
        round(prune * TRIAL), round(prune * CALIBRATION), round(teacher), round(judge * JUDGED)
    )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated seconds of a job by stage; `print` shows a sentence."""

    seconds: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value / 60:.1f}" for name, value in self.seconds.items())
        return f"about {sum(self.seconds.values()) / 60:.0f} minutes: {parts}"


def estimated(speed: Speed, job: Job, effort: Effort) -> Estimate:
    """The seconds of a job by stage.

    Args:
        speed: of the large encoder.
        job: the amounts.
        effort: the bounds.

    Example:
        >>> from jaxcompress.documents.estimate import Effort, Job, Speed, estimated
        >>> job = Job(2.0, 11, 2, 0.4, 10**6, 10**4, 10**6, 5)
        >>> print(estimated(Speed(1e-4, 2.0), job, Effort()))
        about 9 minutes: pruning 1.2, outputs 1.8, learning 3.9, index 0.8, judging 0.8
    """
    token, program = speed.token, speed.program
    moments = effort.calibration * MOMENTS
    teacher = min(effort.teacher, job.training) if job.minutes else 0
    judged = job.tokens * min(effort.judged / max(job.passages, 1), 1.0)
    timed = (1 + job.work) * TIMED * token
    # the moments once more, for storing, and the clustering of all matrices
    tokens = {
        "pruning": effort.trial * (job.candidates + 1) + moments,
        "outputs": teacher,
        "learning": job.work * moments + CLUSTERING,
        "index": job.work * job.tokens,
        "judging": judged,
    }
    programs = {
        "pruning": (job.layers + 1 + GRADIENT) * job.shapes,
        "outputs": job.shapes if teacher else 0,
        "learning": GRADIENT * job.shapes * (3 if job.minutes else 1),
        "index": job.shapes,
        "judging": job.shapes + 4,
    }
    seconds = {name: tokens[name] * token + programs[name] * program for name in tokens}
    seconds["learning"] += 60 * job.minutes
    seconds["judging"] += min(RUNS * timed, 2 * TIMING + timed)
    return Estimate(seconds)


class Stages:
    """A progress bar over the stages of a job, in estimated seconds.

    Args:
        estimate: the seconds of the stages.
        progress: show the estimate and the bar.

    Example:
        >>> from jaxcompress.documents.estimate import Estimate, Stages
        >>> stages = Stages(Estimate({"pruning": 60.0, "index": 30.0}), progress=False)
        >>> with stages("pruning"):
        ...     pass
    """

    def __init__(self, estimate: Estimate, *, progress: bool) -> None:
        self._seconds = estimate.seconds
        total = sum(estimate.seconds.values())
        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} to go"
        self._bar = tqdm(total=total, bar_format=form, disable=not progress)
        if progress:
            tqdm.write(str(estimate), file=self._bar.fp)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Show that a stage runs; once the block ends, that it is done."""
        self._bar.set_description(name)
        yield
        self._bar.update(self._seconds[name])
        if name == list(self._seconds)[-1]:
            self._bar.close()
