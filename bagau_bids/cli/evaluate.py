"""``bagau evaluate``: score masks against reference masks, one case or many."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids import values
from bagau_bids.config import Selection
from bagau_bids.errors import EXIT_OK, EXIT_SUBJECT_FAILED, UsageError
from bagau_bids.options import Exclusive, argument, option

if TYPE_CHECKING:
    import pandas as pd

    from bagau_bids.evaluation.pairs import MaskPair, Unpaired
    from bagau_bids.evaluation.scoring import CaseResult

_COLUMNS = (  # of the table on the terminal: column, head, digits
    ("dice", "Dice", 3),
    ("hausdorff95_mm", "H95 mm", 1),
    ("volume_difference_percent", "AVD %", 1),
    ("lesion_recall", "recall", 2),
    ("lesion_f1", "F1", 2),
    ("reference_ml", "ref. ml", 2),
    ("result_ml", "res. ml", 2),
)
_WIDTH = max(len(head) for _, head, _ in _COLUMNS)
_IN_SUMMARY = (
    "dice",
    "hausdorff95_mm",
    "volume_difference_percent",
    "lesion_recall",
    "lesion_f1",
    "volume_difference_ml",
)

_PAIRING = Exclusive()
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What the subcommand is told."""

    reference: Path = argument(
        "masks that count as right: 0 background, 1 WMH, 2 other pathology (not judged); a "
        "file, a folder, or a BIDS derivative data set",
        metavar="REFERENCE",
    )
    result: Path = argument(
        "masks to judge, on the same grids. Of two folders that hold "
        "*_label-WMH_mask.nii[.gz] these are paired by their entities (desc and res apart), "
        "otherwise all *.nii[.gz] by their path below the folder without extension",
        metavar="RESULT",
    )
    out: Path | None = option(
        None,
        "write evaluation_FLAIR.tsv, evaluation-summary_FLAIR.tsv, each with its .json, and "
        "the page evaluation_FLAIR.html (default: print the tables only)",
        metavar="DIR",
    )
    pairs: Path | None = option(
        None,
        "pair files of any names by a table (.tsv) with the columns reference and result: paths "
        "below the two folders",
        metavar="TSV",
        exclusive=_PAIRING,
    )
    by_order: bool = option(
        False,
        "pair the files of the two folders by their order, 2 before 10",
        exclusive=_PAIRING,
    )
    bids_dir: Path | None = option(
        None, "data set of the scans: worst cases are shown on their FLAIRs", metavar="BIDS_DIR"
    )
    group_by: str | None = option(
        None,
        "also summarise the groups of this column of participants.tsv in --bids-dir, such as site",
        metavar="COLUMN",
    )
    threshold: float | None = option(
        None,
        "take probability maps as results too: voxels count from this value on (default: "
        "refuse them)",
        metavar="P",
        type=values.threshold,
    )
    random_seed: int = option(
        0,
        "start of the random numbers of the confidence intervals (default: %(default)s)",
        metavar="S",
        type=values.whole_number(0),
    )


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.evaluation.pairs import pairing_in_words
    from bagau_bids.evaluation.scoring import evaluate_pairs, unpaired_results
    from bagau_bids.evaluation.tables import case_table, summary_table

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    pairs, unpaired, how = _paired(options)
    for line in pairing_in_words(pairs, how):
        log.info("%s", line)
    groups = _groups(options)
    flairs = _flairs(options.bids_dir, pairs) if options.bids_dir else {}
    _claim(options.out)
    results = evaluate_pairs(pairs, threshold=options.threshold, progress=_say(len(pairs)))
    cases = case_table([*results, *unpaired_results(unpaired)], groups)
    summary = summary_table(cases, seed=options.random_seed)
    if not summary.empty:
        print(in_columns(cases), _summary_in_columns(summary), sep="\n\n")
    if options.out:
        _write(options.out, options, cases, summary, pairs, flairs)
    return report_problems(cases)


def _paired(options: Options) -> "tuple[list[MaskPair], list[Unpaired], str]":
    """Pair the masks; return the pairs, what has none, and how they were paired."""
    from bagau_bids.evaluation.pairs import find_pairs, ordered_pairs, table_pairs

    if options.pairs is not None:
        found = table_pairs(options.pairs, options.reference, options.result)
        return found, [], f"by the table {options.pairs}"
    if options.by_order:
        return ordered_pairs(options.reference, options.result), [], "by the order of their names"
    pairs, unpaired = find_pairs(options.reference, options.result)
    if options.reference.is_file():
        return pairs, unpaired, "as they were named"
    return pairs, unpaired, f"by {'the entities of' if pairs[0].entities else 'equal'} names"


def _groups(options: Options) -> dict[str, str]:
    """Group of each participant, none without --group-by."""
    from bagau_bids.bids.tables import read_records

    if options.group_by is None:
        return {}
    if options.bids_dir is None:
        raise UsageError(
            f"--group-by {options.group_by}: expected --bids-dir as well, for its participants.tsv"
        )
    path = options.bids_dir / "participants.tsv"
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --group-by reads the groups from it")
    rows = read_records(path, ("participant_id", options.group_by))
    return {
        row["participant_id"]: row[options.group_by]
        for row in rows
        if row[options.group_by] not in ("", "n/a")
    }


def _flairs(bids_dir: Path, pairs: "Sequence[MaskPair]") -> dict[str, Path]:
    """FLAIR of each case, where the data set has it."""
    from bagau_bids.bids.scans import find_scans

    if not bids_dir.is_dir():
        raise UsageError(f"{bids_dir}: no such folder; expected a BIDS data set")
    found = {frozenset(s.entities.items()): s.path for s in find_scans(bids_dir, Selection())}
    entities = {pair.case: frozenset(pair.entities.items()) for pair in pairs}
    return {case: found[own] for case, own in entities.items() if own in found}


def _claim(out: Path | None) -> None:
    """Make the output folder before anything is computed for it."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {out}: cannot be made ({error.strerror}); name a folder, new or existing"
        ) from error


def _say(total: int) -> Callable[["CaseResult"], None]:
    count = iter(range(1, total + 1))

    def say(result: "CaseResult") -> None:
        log.info("%d of %d: %s %s", next(count), total, result.case, result.status)

    return say


def in_columns(cases: "pd.DataFrame") -> str:
    """Lay the scored cases out for the terminal."""
    scored = cases[cases["status"] == "scored"]
    width = max(map(len, scored["case"]), default=0)
    lines = ["  ".join([" " * width, *(f"{head:>{_WIDTH}}" for _, head, _ in _COLUMNS)])]
    for row in scored.to_dict("records"):
        numbers = [f"{row[name]:>{_WIDTH}.{digits}f}" for name, _, digits in _COLUMNS]
        lines.append("  ".join([f"{row['case']:<{width}}", *numbers]))
    return "\n".join(lines)


def _summary_in_columns(summary: "pd.DataFrame") -> str:
    """Lay out values with their intervals, of all cases and of each group."""
    width = max(map(len, _IN_SUMMARY))
    lines: list[str] = []
    shown = summary[summary["measure"].isin(_IN_SUMMARY)]
    for group, part in shown.groupby("group", sort=False):
        lines += ["", f"{group}, {part['n_cases'].iloc[0]} cases: mean (95 % interval)"]
        for row in part.to_dict("records"):
            limits = f"{_short(row['ci_low'])} to {_short(row['ci_high'])}"
            lines.append(f"  {row['measure']:<{width}}  {_short(row['value']):>8}  ({limits})")
    return "\n".join(lines[1:])


def _short(value: float) -> str:
    import pandas as pd

    return "n/a" if pd.isna(value) else f"{value:.3f}"


def _write(
    out: Path,
    options: Options,
    cases: "pd.DataFrame",
    summary: "pd.DataFrame",
    pairs: "Sequence[MaskPair]",
    flairs: dict[str, Path],
) -> None:
    from bagau_bids.evaluation.tables import write_tables
    from bagau_bids.reports.evaluation import PAGE_NAME, Comparison, write_evaluation_page

    by_case = {pair.case: pair for pair in pairs}
    comparison = Comparison(
        options.reference, options.result, by_case, flairs, options.threshold, options.random_seed
    )
    paths = [*write_tables(out, cases, summary), out / PAGE_NAME]
    write_evaluation_page(paths[-1], cases, summary, comparison)
    print("\n".join(["", *map(str, paths)]))


def report_problems(cases: "pd.DataFrame") -> int:
    """Say on stderr which cases were not scored and why; return the exit code."""
    unscored = cases[cases["status"] != "scored"]
    for row in unscored.to_dict("records"):
        log.error("%s %s: %s", row["case"], row["status"], row["problem"])
    if unscored.empty:
        return EXIT_OK
    log.error("%d of %d cases were not scored", len(unscored), len(cases))
    return EXIT_SUBJECT_FAILED
