"""Accuracy against cost as a law: error = floor + excess (x / reference) ^ -exponent, fitted to the points of a sweep.

A saturating power law of the error, as in arXiv 1712.00409 and 2001.08361, in GFLOPs. The reference is the geometric
mean of the points' GFLOPs, so that `excess` is an error among those that were measured. An interval is Student's t
around a least-squares parameter, from the fit's own residuals: it says how well these points determine the law, not
whether it is the right one.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import curve_fit
from scipy.special import stdtrit

from pipeline.report.records import Records
from pipeline.report.statistics import CONFIDENCE
from pipeline.report.tables import sweep

MIN_COSTS = 5  # different ones: the law has three parameters, and two more points are to contradict it
STARTS = (0.25, 0.5, 1.0, 2.0)  # exponents that the fit begins with; the best end counts
LARGEST_EXPONENT = 10.0
WIDEST = 0.5  # half of an interval of the limit that still says something
LEAST_FLOOR = 1e-6  # below which a fit has ended at its bound, where its covariance says nothing
FITTED, UNDETERMINED = "fitted", "not determined by these points"
AT_BOUND = "not determined by these points: no limit below 100 % fits them better"
COLUMNS = [
    *("series", "num_points", "limit", "limit_low", "limit_high", "exponent", "exponent_low", "exponent_high"),
    *("excess", "reference_gflops", "rmse", "status"),
]
Array = NDArray[np.float64]


class Law(NamedTuple):
    """A fitted law: `values` are floor, excess and exponent, `covariance` theirs (3, 3), `dof` the points left over."""

    values: Array
    covariance: Array
    reference: float
    rmse: float
    dof: int

    def error(self, gflops: Array) -> Array:
        """The share that is wrong at these costs, by the law."""
        return _law(gflops / self.reference, *self.values)

    def half_width(self, gflops: Array) -> Array:
        """Half of the confidence interval of `error`, to first order in the parameters."""
        x = gflops / self.reference
        _, excess, exponent = self.values
        slope = np.stack([np.ones_like(x), x**-exponent, -excess * np.log(x) * x**-exponent])
        variance = np.einsum("in,ij,jn->n", slope, self.covariance, slope)
        return self.quantile * np.sqrt(np.maximum(variance, 0))

    @property
    def quantile(self) -> float:
        """Standard errors to either side of a value."""
        return float(stdtrit(self.dof, 0.5 + CONFIDENCE / 2))

    @property
    def half_widths(self) -> Array:
        """Half of the confidence interval of each of `values`."""
        return self.quantile * np.sqrt(np.diag(self.covariance))

    @property
    def determined(self) -> bool:
        """Whether the points say where the law ends: a finite, not all too wide interval of a limit below 100 %."""
        widths = self.half_widths
        inside = 0 < self.values[2] < LARGEST_EXPONENT * (1 - 1e-6) and self.values[1] > 0
        return bool(inside and not self.at_bound and np.isfinite(widths).all() and widths[0] <= WIDEST)

    @property
    def at_bound(self) -> bool:
        """Whether the floor is 0 because it may not be negative."""
        return bool(self.values[0] < LEAST_FLOOR)


def fit_law(gflops: Array, accuracy: Array) -> Law | None:
    """The law through these points; None where they have fewer than `MIN_COSTS` different costs, or no fit ends.

    Args:
        gflops: Above zero.
        accuracy: Shares from 0 to 1.
    """
    if len(np.unique(gflops)) < MIN_COSTS:
        return None
    order = np.lexsort((accuracy, gflops))  # the same points in another order give the same bits
    gflops, error = gflops[order], 1 - accuracy[order]
    reference = float(np.exp(np.log(gflops).mean()))
    fits = [fit for start in STARTS if (fit := _fit(gflops / reference, error, start)) is not None]
    if not fits:
        return None
    values, covariance = min(fits, key=lambda fit: _rmse(gflops / reference, error, fit[0]))
    return Law(values, covariance, reference, _rmse(gflops / reference, error, values), len(error) - 3)


def scaling(records: Records) -> pd.DataFrame:
    """One row per tokenizer of the sweep, with `COLUMNS`; shares from 0 to 1, `limit` is the accuracy at any cost."""
    found = [_row(name, points, fit_law(*_arrays(points))) for name, points in series(records).items()]
    return pd.DataFrame(found, columns=COLUMNS)


def series(records: Records) -> dict[str, pd.DataFrame]:
    """The located points of the sweep by tokenizer, `gflops` and `value`: those that a law can be fitted to."""
    table, mean = sweep(records), f"{records.task.first.name}_mean"
    known = table[table[mean].notna() & (table["gflops"] > 0)].assign(value=lambda frame: frame[mean])
    return {str(name): points for name, points in known.groupby("tokenizer", sort=False)}


def laws(records: Records) -> dict[str, Law]:
    """The laws by tokenizer, where the points determine one."""
    fits = {name: fit_law(*_arrays(points)) for name, points in series(records).items()}
    return {name: law for name, law in fits.items() if law is not None and law.determined}


def _arrays(points: pd.DataFrame) -> tuple[Array, Array]:
    return points["gflops"].to_numpy(float), points["value"].to_numpy(float)


def _row(name: str, points: pd.DataFrame, law: Law | None) -> list[object]:
    num_costs = points["gflops"].nunique()
    if law is None:
        few = f"too few points: {num_costs} different costs, a fit needs {MIN_COSTS}"
        return [name, len(points), *[np.nan] * 9, few if num_costs < MIN_COSTS else UNDETERMINED]
    floor, excess, exponent = law.values
    if not law.determined:
        return [name, len(points), *[np.nan] * 8, law.rmse, AT_BOUND if law.at_bound else UNDETERMINED]
    d_floor, _, d_exponent = law.half_widths
    limit = [1 - floor, max(0.0, 1 - floor - d_floor), min(1.0, 1 - floor + d_floor)]
    power = [exponent, exponent - d_exponent, exponent + d_exponent]
    return [name, len(points), *limit, *power, excess, law.reference, law.rmse, FITTED]


def _law(x: Array, floor: float, excess: float, exponent: float) -> Array:
    return floor + excess * x**-exponent


def _fit(x: Array, error: Array, exponent: float) -> tuple[Array, Array] | None:
    start = [0.5 * float(error.min()), max(float(error.mean()) - 0.5 * float(error.min()), 1e-3), exponent]
    bounds = ([0.0, 0.0, 0.0], [1.0, 10.0, LARGEST_EXPONENT])
    try:
        with np.errstate(all="ignore"):
            return curve_fit(_law, x, error, p0=start, bounds=bounds, xtol=1e-12, ftol=1e-12, max_nfev=5000)[:2]
    except (RuntimeError, ValueError):  # no end within its steps
        return None


def _rmse(x: Array, error: Array, values: Array) -> float:
    return float(np.sqrt(np.mean((_law(x, *values) - error) ** 2)))
