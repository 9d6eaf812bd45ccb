"""The table of cases and its summary with confidence intervals."""

import json

import numpy as np
import pandas as pd
import pytest

from bagau_bids.evaluation import tables
from bagau_bids.evaluation.pairs import MaskPair, Unpaired
from bagau_bids.evaluation.scoring import CaseResult, unpaired_results
from bagau_bids.measures.metrics import case_scores
from bagau_bids.spaces import Image

AFFINE = np.diag([4.0, 5.0, 6.0, 1.0])  # 0.12 ml a voxel: medium lesions, and large ones


def scored(case, seed, **entities):
    rng = np.random.default_rng(seed)
    reference = rng.random((9, 9, 5)) < rng.uniform(0.02, 0.2)
    result = reference & (rng.random(reference.shape) < 0.8)
    result |= rng.random(reference.shape) < 0.02
    pair = MaskPair(case, "t", "f", entities)
    return CaseResult(case, case_scores(Image(reference, AFFINE), result), "", pair, entities)


@pytest.fixture
def results():
    """Four participants of two sites, one with two sessions; one failed, one unpaired."""
    return [
        scored("sub-10", 1, sub="10"),
        scored("sub-2_ses-1", 2, sub="2", ses="1"),
        scored("sub-2_ses-2", 3, sub="2", ses="2"),
        scored("sub-3", 4, sub="3"),
        scored("plain", 5),
        CaseResult("sub-4", None, "a file\nis damaged", MaskPair("sub-4", "t", "f"), {"sub": "4"}),
        *unpaired_results([Unpaired("sub-5", "no result", {"sub": "5"})]),
    ]


GROUPS = {"sub-2": "B", "sub-3": "A", "sub-10": "B"}


def test_one_row_a_case_whatever_became_of_it(results):
    table = tables.case_table(results, GROUPS)
    assert table["case"].tolist() == [
        "plain",
        "sub-2_ses-1",
        "sub-2_ses-2",
        "sub-3",
        "sub-4",
        "sub-5",
        "sub-10",
    ]
    assert table.status.tolist() == ["scored"] * 4 + ["failed", "unpaired", "scored"]
    assert table.problem.tolist()[4:6] == ["a file is damaged", "no result"]
    assert table.session_id.dropna().tolist() == ["ses-1", "ses-2"]
    assert table.group.dropna().tolist() == ["B", "B", "A", "B"]
    scores = results[0].scores
    last = table.iloc[-1]
    assert last.dice == scores.dice
    assert last.volume_difference_ml == scores.result_ml - scores.reference_ml
    assert last.large_lesion_f1 == scores.large.f1
    assert last.medium_matching_lesions == scores.medium.matching
    measured = table.loc[table.status == "scored", "dice":]
    assert not measured.isna().any().any()
    assert table.loc[table.status != "scored", "dice":].isna().all().all()


def rows(results, group="all", **options):
    summary = tables.summary_table(tables.case_table(results, GROUPS), **options)
    return summary[summary.group == group].set_index("measure")


def oracle_interval(results, statistic, seed=0, resamples=4000):
    """Draw participants one after the other and count their cases."""
    rng = np.random.default_rng(seed + 99)
    people = {}
    for result in results:
        people.setdefault(result.entities.get("sub", result.case), []).append(result.scores)
    people = list(people.values())
    drawn = []
    for _ in range(resamples):
        chosen = [people[i] for i in rng.integers(len(people), size=len(people))]
        drawn.append(statistic([scores for person in chosen for scores in person]))
    return np.nanpercentile(drawn, [2.5, 97.5])


def pooled(scores):
    reference, detected, result, matching = (
        sum(getattr(s.medium, kind) for s in scores)
        for kind in ("reference", "detected", "result", "matching")
    )
    recall, precision = detected / reference, matching / result
    return 2 * recall * precision / (recall + precision)


def correlation(scores):
    one, two = [s.reference_ml for s in scores], [s.result_ml for s in scores]
    return np.nan if len(set(one)) < 2 else np.corrcoef(one, two)[0, 1]


@pytest.mark.parametrize(
    ("measure", "statistic"),
    [
        ("dice", lambda scores: np.mean([s.dice for s in scores])),
        ("volume_difference_ml", lambda scores: np.mean([s.volume_difference_ml for s in scores])),
        ("medium_lesion_f1", pooled),
        ("volume_correlation", correlation),
    ],
)
def test_values_and_intervals_agree_with_a_slow_bootstrap(results, measure, statistic):
    complete = results[:5]
    row = rows(results).loc[measure]
    assert row.value == pytest.approx(statistic([result.scores for result in complete]))
    expected = oracle_interval(complete, statistic)
    width = expected[1] - expected[0]
    np.testing.assert_allclose([row.ci_low, row.ci_high], expected, atol=0.1 * width)


def test_means_come_with_their_spread(results):
    values = [result.scores.dice for result in results[:5]]
    row = rows(results).loc["dice"]
    assert (row.n_cases, row.statistic) == (5, "mean")
    assert row.sd == pytest.approx(np.std(values, ddof=1))
    assert row["median"] == pytest.approx(np.median(values))
    assert (row.minimum, row.maximum) == (min(values), max(values))


def test_groups_are_summarised_on_their_own(results):
    values = [result.scores.dice for result in results[:3]]
    assert rows(results, "B").loc["dice", "value"] == pytest.approx(np.mean(values))
    assert rows(results, "B").loc["dice", "n_cases"] == 3
    alone = rows(results, "A").loc["dice"]
    assert (alone.value, alone.n_cases) == (results[3].scores.dice, 1)
    assert alone[["ci_low", "ci_high", "sd"]].isna().all()
    assert pd.isna(rows(results, "A").loc["volume_correlation", "value"])


def test_same_seed_gives_the_same_intervals(results):
    few = {"resamples": 37}  # many samples of few participants end at the same percentiles
    first = rows(results, seed=3, **few)
    pd.testing.assert_frame_equal(first, rows(results, seed=3, **few))
    assert not first.ci_low.equals(rows(results, seed=4, **few).ci_low)


def test_sizes_that_no_case_has_are_not_made_up(results):
    row = rows(results).loc["small_lesion_f1"]
    assert (row.n_cases, row.statistic) == (0, "pooled")
    assert row[["value", "ci_low", "ci_high"]].isna().all()


def test_equal_volumes_have_no_correlation():
    empty = case_scores(Image(np.zeros((5, 5, 5)), AFFINE), np.zeros((5, 5, 5)))
    results = [CaseResult(str(n), empty, "", MaskPair(str(n), "t", "f")) for n in range(4)]
    summary = rows(results)
    assert summary.loc["dice", ["value", "ci_low", "ci_high"]].tolist() == [1, 1, 1]
    assert pd.isna(summary.loc["volume_correlation", "value"])


def test_nothing_scored_has_no_summary(results):
    assert tables.summary_table(tables.case_table(results[5:])).empty


def test_tables_are_written_with_every_column_described(results, tmp_path):
    cases = tables.case_table(results, GROUPS)
    paths = tables.write_tables(tmp_path, cases, tables.summary_table(cases, resamples=50))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evaluation-summary_FLAIR.json",
        "evaluation-summary_FLAIR.tsv",
        "evaluation_FLAIR.json",
        "evaluation_FLAIR.tsv",
    ]
    for path in paths:
        text = path.read_text()
        assert "nan" not in text.lower()
        assert "<NA>" not in text
        described = json.loads(path.with_suffix(".json").read_text())
        assert list(described) == text.splitlines()[0].split("\t")
        assert all(entry["Description"] for entry in described.values())
    again = pd.read_csv(paths[0], sep="\t", na_values="n/a", keep_default_na=False)
    assert again.reference_lesions.dropna().tolist() == cases.reference_lesions.dropna().tolist()
    assert ".0\t" not in "\t".join(paths[0].read_text().splitlines()[1].split("\t")[17:19])
