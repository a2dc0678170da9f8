"""What a few seeds and many test samples allow to say: intervals, paired tests, corrections. Numbers in, numbers out.

Two kinds of chance are kept apart. Another seed gives another model: few seeds, so their interval is Student's, wide
and honest; a bootstrap over three seeds draws one of ten mixtures of them and is too narrow. Other test samples give
another score of the same models: many samples, so they are resampled. `nested_bootstrap` does both.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, stdtr, stdtrit

CONFIDENCE = 0.95
NUM_RESAMPLES = 1000  # bootstrap: the ends of an interval of 95 % are known to a few per cent of its width
NUM_FLIPS = 9999  # of the random paired test: no p below 1e-4
SMALLEST_P = 1e-10  # of the exact paired test: below it rounding counts
CHUNK = 4_000_000  # resampled places at once
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """From `low` to `high`, both included."""

    low: float
    high: float


class Seeds(NamedTuple):
    """A measure over the seeds of one experiment: mean, sample standard deviation (n - 1), number of seeds.

    `std` is None where it is unknown, or there is only one seed.
    """

    mean: float
    std: float | None
    num: int

    @classmethod
    def of(cls, values: ArrayLike) -> "Seeds":
        """Of one value per seed, at least one."""
        array = np.asarray(values, float)
        return cls(float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None, array.size)


def mean_interval(seeds: Seeds, confidence: float = CONFIDENCE) -> Interval | None:
    """Student's interval of the mean, for values that are normal over seeds; None of fewer than two seeds.

    With three seeds it reaches 2.5 standard deviations to either side.
    """
    if seeds.std is None or seeds.num < 2:
        return None
    half = float(half_width(seeds.std, seeds.num, confidence))
    return Interval(seeds.mean - half, seeds.mean + half)


def half_width(std: ArrayLike, num: ArrayLike, confidence: float = CONFIDENCE) -> Floats:
    """Half of Student's interval of means, by sample deviations and numbers of values; NaN of fewer than two."""
    counts = np.asarray(num, float)
    degrees = np.where(counts > 1, counts - 1, np.nan)
    width: Floats = stdtrit(degrees, (1 + confidence) / 2) * np.asarray(std, float) / np.sqrt(degrees + 1)
    return width


def difference_interval(ours: Seeds, theirs: Seeds, confidence: float = CONFIDENCE) -> Interval | None:
    """Welch's interval of the difference of the means, ours less theirs; None where either has fewer than two seeds."""
    spread = _welch(ours, theirs)
    if spread is None:
        return None
    error, degrees = spread
    half = float(stdtrit(degrees, (1 + confidence) / 2)) * error if error > 0 else 0.0
    return Interval(ours.mean - theirs.mean - half, ours.mean - theirs.mean + half)


def difference_p(ours: Seeds, theirs: Seeds) -> float | None:
    """Welch's two-sided test that both means are equal; None where either has fewer than two seeds."""
    spread = _welch(ours, theirs)
    if spread is None:
        return None
    error, degrees = spread
    distance = abs(ours.mean - theirs.mean)
    if error == 0:
        return float(distance == 0)
    return float(min(1.0, 2 * stdtr(degrees, -distance / error)))


def resampled_means(scores: ArrayLike, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Floats:
    """Means of every column over samples drawn anew, the same ones for all columns.

    Args:
        scores: (n, K): of n test samples, by K models.

    Returns:
        (num_resamples, K).
    """
    table = np.asarray(scores, float)
    num, rng, means = len(table), np.random.default_rng(seed), []
    step = max(1, CHUNK // max(1, num))
    for start in range(0, num_resamples, step):
        drawn = rng.integers(0, num, (min(step, num_resamples - start), num))
        places = drawn + num * np.arange(len(drawn))[:, None]
        counts = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means.append(counts @ table / num)
    return np.concatenate(means)


def nested_bootstrap(means: Floats, seed: int = 0) -> Floats:
    """Means over models drawn anew, one draw for every draw of the samples.

    Args:
        means: (R, S) of `resampled_means`, one column per seed.

    Returns:
        (R,).
    """
    num_draws, num_seeds = means.shape
    drawn = np.random.default_rng([seed, 1]).integers(0, num_seeds, means.shape)
    return means[np.arange(num_draws)[:, None], drawn].mean(axis=1)


def percentiles(draws: Floats, confidence: float = CONFIDENCE) -> Interval:
    """The middle `confidence` of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """McNemar's exact two-sided test: of samples that only one of two models has right, is either one's share half?"""
    return float(min(1.0, 2 * bdtr(min(only_ours, only_theirs), only_ours + only_theirs, 0.5)))


def sign_flip(differences: ArrayLike, denominator: int | None = None, seed: int = 0) -> float:
    """Paired two-sided test over samples: could the sign of each one's difference as well be the other?

    Args:
        differences: (n,) of the mean scores of two sets of models.
        denominator: Differences are whole multiples of 1 / denominator, and the test is exact: with 1 it is
            `mcnemar`. None: any numbers; signs are drawn, from `seed`.
    """
    values = np.asarray(differences, float)
    if denominator is None:
        return _drawn_flips(values[values != 0], seed)
    steps = np.rint(values * denominator).astype(int)
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    return _all_flips(sizes, counts, int(steps[steps > 0].sum()))


def holm(p_values: ArrayLike) -> Floats:
    """Holm's correction: rejecting what is below alpha here errs anywhere with a chance of at most alpha."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def _welch(ours: Seeds, theirs: Seeds) -> tuple[float, float] | None:
    """Standard error of the difference, and Satterthwaite's degrees of freedom."""
    if ours.std is None or theirs.std is None or min(ours.num, theirs.num) < 2:
        return None
    parts = [seeds.std**2 / seeds.num for seeds in (ours, theirs) if seeds.std is not None]
    total = sum(parts)
    below = sum(part**2 / (seeds.num - 1) for part, seeds in zip(parts, (ours, theirs), strict=True))
    return math.sqrt(total), total**2 / below if below > 0 else math.inf


def _all_flips(sizes: NDArray[np.int64], counts: NDArray[np.int64], positive: int) -> float:
    """P(|2X - total| >= |2 positive - total|), X the sum of the sizes whose fair coin shows heads.

    The distribution of X is the inverse Fourier transform of the product of the coins' characteristic functions.
    """
    total = int((sizes * counts).sum())
    if total == 0:
        return 1.0
    angles = 2 * np.pi * np.arange(total // 2 + 1 + total % 2) / (total + 1)
    spectrum = np.ones(angles.shape, complex)
    for size, count in zip(sizes, counts, strict=True):
        spectrum *= ((1 + np.exp(-1j * angles * size)) / 2) ** count
    chances = np.fft.irfft(spectrum, total + 1)
    far = np.abs(2 * np.arange(total + 1) - total) >= abs(2 * positive - total)
    return float(np.clip(chances[far].sum(), SMALLEST_P, 1.0))


def _drawn_flips(differences: Floats, seed: int) -> float:
    """The share of random signs that bring the sum as far from 0 as it is, the true signs being one of the draws."""
    if not differences.size:
        return 1.0
    rng, observed, as_far = np.random.default_rng(seed), abs(differences.sum()), 1
    step = max(1, CHUNK // differences.size)
    for start in range(0, NUM_FLIPS, step):
        heads = rng.integers(0, 2, (min(step, NUM_FLIPS - start), differences.size), dtype=np.int8)
        sums = np.abs(2 * (heads @ differences) - differences.sum())
        as_far += int((sums >= observed * (1 - 1e-12)).sum())
    return as_far / (NUM_FLIPS + 1)
