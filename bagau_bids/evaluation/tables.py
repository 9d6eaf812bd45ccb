"""Tables of an evaluation: one row a case, and a summary with bootstrap confidence intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bagau_bids.bids.derivatives import sidecar_path
from bagau_bids.bids.tables import column_descriptions, described_table, natural_key
from bagau_bids.evaluation.scoring import CaseResult
from bagau_bids.files import write_json, write_table
from bagau_bids.measures.metrics import CaseScores, LesionCounts

SIZES = ("small", "medium", "large")
MEANS = (
    "dice",
    "hausdorff95_mm",
    "volume_difference_percent",
    "lesion_recall",
    "lesion_precision",
    "lesion_f1",
    "voxel_recall",
    "voxel_precision",
    "reference_ml",
    "result_ml",
    "volume_difference_ml",
)
_OF_ALL_SIZES = ("reference_lesions", "result_lesions")
_COUNTS = ("reference", "detected", "result", "matching")
ALL = "all"
RESAMPLES = 10_000
CONFIDENCE = 0.95
FEWEST_TO_CORRELATE = 3  # two cases always lie on a line
TABLE_NAME = "evaluation_FLAIR.tsv"
SUMMARY_NAME = "evaluation-summary_FLAIR.tsv"


def case_table(
    results: Sequence[CaseResult], groups: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Put the cases into a table, one row each, numbers in names by their value.

    Parameters
    ----------
    results : sequence of CaseResult
    groups : mapping of str to str, optional
        Group by participant, such as ``{"sub-01": "Utrecht"}``.

    Returns
    -------
    DataFrame
        The columns are described in ``data/tables/evaluation.json``; scores are missing (NA)
        where a case could not be scored, and never otherwise.
    """
    ordered = sorted(results, key=lambda result: natural_key(result.case))
    return described_table(
        [_row(result, groups or {}) for result in ordered], column_descriptions("evaluation")
    )


def summary_table(
    cases: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Summarise a table of cases, over all and over each of its groups.

    Parameters
    ----------
    cases : DataFrame
        As `case_table` returns it; cases that were not scored are left out.
    seed : int
        Start of the random numbers; the same seed gives the same intervals.
    resamples : int
        Bootstrap samples.

    Returns
    -------
    DataFrame
        One row a measure and group; the columns are described in
        ``data/tables/evaluation_summary.json``. No row where no case was scored.
    """
    scored = cases[cases["status"] == "scored"]
    rows = list(_summary_of(scored, ALL, seed, resamples)) if len(scored) else []
    for group in sorted(scored["group"].dropna().unique(), key=natural_key):
        rows += _summary_of(scored[scored["group"] == group], group, seed, resamples)
    return described_table(
        [asdict(row) for row in rows], column_descriptions("evaluation_summary")
    )


def write_tables(folder: Path, cases: pd.DataFrame, summary: pd.DataFrame) -> tuple[Path, Path]:
    """Write both tables, each with its sidecar; return their paths, cases first."""
    paths = folder / TABLE_NAME, folder / SUMMARY_NAME
    for path, table, name in zip(
        paths, (cases, summary), ("evaluation", "evaluation_summary"), strict=True
    ):
        write_table(path, table)
        write_json(sidecar_path(path), column_descriptions(name))
    return paths


@dataclass(frozen=True)
class _Summary:
    """Row of the summary, see ``data/tables/evaluation_summary.json``."""

    group: str
    measure: str
    statistic: str
    n_cases: int
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    sd: float | None = None
    median: float | None = None
    minimum: float | None = None
    maximum: float | None = None

    def within(self, samples: NDArray) -> "_Summary":
        """Add the percentile interval of bootstrap samples; none where no sample tells any."""
        if not samples.size:
            return self
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(samples, [tail, 100 - tail])
        return replace(self, ci_low=float(low), ci_high=float(high))


@dataclass(frozen=True)
class _Sampler:
    """Bootstrap samples of participants.

    Parameters
    ----------
    weights : (samples, cases) array
        How often each sample holds each case; cases of one participant have one number.
    """

    weights: NDArray[np.float64]

    @classmethod
    def draw(cls, participants: Sequence[str], seed: int, resamples: int) -> "_Sampler | None":
        """Draw samples; None where there are fewer than two participants."""
        _, of_case = np.unique(np.asarray(participants, dtype=str), return_inverse=True)
        count = int(of_case.max()) + 1
        if count < 2:
            return None
        random = np.random.default_rng(seed)
        drawn = random.multinomial(count, np.full(count, 1 / count), size=resamples)
        return cls(drawn[:, of_case].astype(float))

    def totals(self, values: NDArray) -> NDArray[np.float64]:
        """Sum of the values in each sample."""
        return self.weights @ values

    @property
    def cases(self) -> NDArray[np.float64]:
        """Number of cases in each sample."""
        return self.weights.sum(axis=1)


def _summary_of(cases: pd.DataFrame, group: str, seed: int, resamples: int) -> Iterator[_Summary]:
    participants = cases["participant_id"].fillna(cases["case"]).tolist()
    sampler = _Sampler.draw(participants, seed, resamples)
    for measure in MEANS:
        yield _mean(group, measure, _numbers(cases, measure), sampler)
    for size in SIZES:
        counts = np.stack([_numbers(cases, f"{size}_{kind}_lesions") for kind in _COUNTS])
        yield _pooled_f1(_Summary(group, f"{size}_lesion_f1", "pooled", 0), counts, sampler)
    volumes = _numbers(cases, "reference_ml"), _numbers(cases, "result_ml")
    row = _Summary(group, "volume_correlation", "correlation", len(cases))
    yield _correlation(row, *volumes, sampler)


def _mean(group: str, measure: str, values: NDArray, sampler: _Sampler | None) -> _Summary:
    found = _Summary(
        group,
        measure,
        "mean",
        n_cases=len(values),
        value=values.mean(),
        sd=values.std(ddof=1) if len(values) > 1 else None,
        median=float(np.median(values)),
        minimum=values.min(),
        maximum=values.max(),
    )
    return found.within(sampler.totals(values) / sampler.cases) if sampler else found


def _pooled_f1(row: _Summary, counts: NDArray, sampler: _Sampler | None) -> _Summary:
    """F1 of summed counts, which are (reference, detected, result, matching) x cases."""
    present = int(np.count_nonzero(counts[0] + counts[2]))
    if not present:
        return row
    value = LesionCounts(*counts.sum(axis=1).astype(int).tolist()).f1
    found = replace(row, n_cases=present, value=value)
    if sampler is None:
        return found
    sums = np.stack([sampler.totals(count) for count in counts], axis=1).astype(int)
    # A sample without any lesion of this size says nothing.
    told = [LesionCounts(*row).f1 for row in sums.tolist() if row[0] + row[2]]
    return found.within(np.array(told))


def _correlation(
    row: _Summary, reference: NDArray, result: NDArray, sampler: _Sampler | None
) -> _Summary:
    value = _pearson(np.ones((1, len(reference))), reference, result)
    if not value.size or len(reference) < FEWEST_TO_CORRELATE:
        return row
    found = replace(row, value=value[0])
    return found.within(_pearson(sampler.weights, reference, result)) if sampler else found


def _pearson(weights: NDArray, first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """Pearson correlation in each sample; samples where either does not vary are left out."""
    one, two = first - first.mean(), second - second.mean()
    total = weights.sum(axis=1)
    one_mean, two_mean = weights @ one / total, weights @ two / total
    one_variance = weights @ one**2 / total - one_mean**2
    two_variance = weights @ two**2 / total - two_mean**2
    # Rounding makes the variance of equal numbers a little more or less than nothing.
    varies = (one_variance > 1e-12 * one.var()) & (two_variance > 1e-12 * two.var())
    covariance = weights @ (one * two) / total - one_mean * two_mean
    spread = np.sqrt(one_variance[varies] * two_variance[varies])
    return np.clip(covariance[varies] / spread, -1, 1)


def _numbers(cases: pd.DataFrame, column: str) -> NDArray[np.float64]:
    return cases[column].to_numpy(dtype=float)


def _row(result: CaseResult, groups: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "case": result.case,
        "status": result.status,
        "problem": " ".join(result.problem.split()) or None,
    }
    if "sub" in result.entities:
        row["participant_id"] = f"sub-{result.entities['sub']}"
        row["group"] = groups.get(row["participant_id"])
    if "ses" in result.entities:
        row["session_id"] = f"ses-{result.entities['ses']}"
    return row | (_score_columns(result.scores) if result.scores else {})


def _score_columns(scores: CaseScores) -> dict[str, float | int]:
    columns = {name: getattr(scores, name) for name in (*MEANS, *_OF_ALL_SIZES)}
    for size in SIZES:
        counts: LesionCounts = getattr(scores, size)
        columns |= {f"{size}_{kind}_lesions": getattr(counts, kind) for kind in _COUNTS}
        columns[f"{size}_lesion_f1"] = counts.f1
    return columns
