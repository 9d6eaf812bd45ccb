"""People into folds: nobody is in two parts, sites are spread evenly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bagau_bids.bids.tables import read_records
from bagau_bids.datasets.labelled import LabelledScan, Split
from bagau_bids.errors import UsageError
from bagau_bids.experiments.definition import DataSource, FoldPlan

Person = tuple[int, str]  # number of the data set, subject


@dataclass(frozen=True)
class Fold:
    """One division of the scans, numbered from 1."""

    number: int
    split: Split


def make_folds(
    scans: Sequence[LabelledScan],
    plan: FoldPlan,
    sources: Sequence[DataSource],
    strata: Mapping[Person, str],
) -> list[Fold]:
    """Divide scans into folds.

    Parameters
    ----------
    scans : sequence of LabelledScan
    plan : FoldPlan
    sources : sequence of DataSource
        In the order of the data sets' numbers; their groups stay together.
    strata : mapping
        Value that is spread over the parts, by person; people who are not in it are one more
        stratum.

    Returns
    -------
    list of Fold
        A function of the people, the plan and the strata alone.

    Raises
    ------
    UsageError
        If there are fewer groups of people than needed, or a group names somebody unknown.
    """
    people = sorted({(scan.dataset, scan.scan.subject) for scan in scans})
    groups = _grouped(people, sources)
    if len(groups) < max(plan.parts, 3):
        raise UsageError(
            f"{len(groups)} people (or groups that stay together) with masks; expected at least "
            f"{max(plan.parts, 3)} to divide them into {plan.parts} parts: ask for fewer parts"
        )
    rng = np.random.default_rng(plan.seed)
    shuffled = [groups[i] for i in rng.permutation(len(groups))]
    dealt = sorted(shuffled, key=lambda group: strata.get(group[0], ""))
    return [_fold(number, dealt, scans, plan) for number in range(plan.folds)]


def _grouped(people: Sequence[Person], sources: Sequence[DataSource]) -> list[tuple[Person, ...]]:
    group_of: dict[Person, tuple[Person, ...]] = {person: (person,) for person in people}
    for number, source in enumerate(sources):
        for names in source.groups:
            members = tuple((number, str(name)) for name in names if (number, name) in group_of)
            group_of.update(dict.fromkeys(members, members))
    return list(dict.fromkeys(group_of.values()))


def _fold(
    number: int, dealt: Sequence[tuple[Person, ...]], scans: Sequence[LabelledScan], plan: FoldPlan
) -> Fold:
    test = dealt[number :: plan.parts]
    rest = [group for group in dealt if group not in test]
    count = max(1, round(len(rest) * plan.validation))
    held = [rest[int((k + 0.5) * len(rest) / count)] for k in range(count)]
    training = [group for group in rest if group not in held]

    def among(groups: Sequence[tuple[Person, ...]]) -> tuple[LabelledScan, ...]:
        members = {person for group in groups for person in group}
        return tuple(s for s in scans if (s.dataset, s.scan.subject) in members)

    return Fold(number + 1, Split(among(training), among(held), among(test)))


def read_people(bids_dir: Path, source: DataSource) -> dict[str, str] | None:
    """Read from ``participants.tsv`` who takes part, and what is to be spread over the parts.

    Parameters
    ----------
    bids_dir : Path
    source : DataSource

    Returns
    -------
    dict or None
        Value of the column that is balanced (or an empty text) by subject, of those for whom
        all conditions hold; None where the experiment needs nothing from the table.

    Raises
    ------
    UsageError
        If the table or a column is missing.
    """
    needed = [*source.where, *([source.balance] if source.balance else [])]
    if not needed:
        return None
    path = bids_dir / "participants.tsv"
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; the experiment expects the columns {', '.join(needed)} there: "
            "add the table, or take 'balance' and 'where' out of the experiment's file"
        )
    rows = read_records(path, ("participant_id", *needed))
    return {
        row["participant_id"].removeprefix("sub-"): row[source.balance] if source.balance else ""
        for row in rows
        if all(row[column] == value for column, value in source.where.items())
    }
