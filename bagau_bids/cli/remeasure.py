"""``bagau remeasure``: volumes, regions and pages anew from masks that were edited by hand."""

import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids import values
from bagau_bids.cli import segment
from bagau_bids.config import Execution
from bagau_bids.errors import EXIT_OK, EXIT_SUBJECT_FAILED, BagauError, UsageError
from bagau_bids.options import argument, option

if TYPE_CHECKING:
    from bagau_bids.reports.results import ScanResults

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the subcommand is told."""

    out: Path = argument(
        "results of bagau-bids or of bagau segment", metavar="OUT", type=values.any_path
    )
    masks: Path | None = option(
        None,
        "folder of edited masks (0 and 1, or 0 and 255, on the grid of the FLAIR), named as in "
        "derivatives (sub-01_label-WMH_mask.nii.gz) or as the scan (sub-01.nii.gz, scan.nii.gz). "
        "Default: those in OUT, saved over the network's",
        metavar="DIR",
        type=values.any_path,
    )
    table: Path | None = option(
        None,
        "for masks of any name: a table (.tsv) with the columns scan and mask, the latter below "
        "--masks, or below the table's folder",
        metavar="TSV",
        type=values.any_path,
    )
    labels: Path | None = option(
        None,
        "also copy the masks here under the names of a derivative data set, for bagau train",
        metavar="DIR",
        type=values.any_path,
    )


@dataclass(frozen=True)
class _Results:
    """Derivatives, and the folder of `bagau segment` around them where there is one."""

    derivatives: Path
    plain: Path | None
    scans: "Mapping[str, ScanResults]"  # by their stems
    names: Mapping[str, str]  # what the user calls a scan, by its stem

    def own_mask(self, scan: "ScanResults") -> Path:
        """Where a mask lies that was saved over the network's."""
        from bagau_bids.bids.plain import PLAIN_NAMES

        if self.plain is None:
            return scan.path("wmh_mask")
        return self.plain / self.names[scan.stem] / PLAIN_NAMES["wmh_mask"]


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.reports.fingerprint import further_pages, pages_in_place
    from bagau_bids.reports.participant import write_participant_report
    from bagau_bids.workflow.remeasure import remeasure

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    found = _results(options.out)
    scans = found.scans
    given = dict(_given(options, found))
    if not given:
        raise UsageError(
            f"{options.masks or options.out}: holds no mask of the {len(scans)} scans of "
            f"{options.out}; expected names such as {_expected_names(found)}, or --table"
        )
    good, failed = dict[str, Path](), set[str]()
    for stem, path in given.items():
        scan, name = scans[stem], found.names[stem]
        try:
            if found.plain is not None:
                segment.keep_saved_over(found.plain, name, scan.entities["sub"], path)
            if remeasure(scan, path):
                log.info("%s: measured anew from %s", name, path)
            else:
                log.info("%s: nothing to measure, the results are of this mask", name)
            good[stem] = path
        except BagauError as error:
            failed.add(stem)
            log.error("%s: failed: %s", name, error)
    # What follows from the masks is put right also where an earlier run was stopped before it.
    further = further_pages(found.derivatives)
    for subject in dict.fromkeys(scans[stem].entities["sub"] for stem in good):
        own = further.get(f"sub-{subject}", ())
        pages = pages_in_place(
            found.derivatives, f"sub-{subject}", Execution.aggregate_session_reports, own
        )
        pages = pages or write_participant_report(found.derivatives, subject)
        if found.plain is None:
            log.info("Page: %s", pages[0])
    code = EXIT_OK
    if found.plain is not None and good:
        labels = {found.names[stem]: scans[stem].entities["sub"] for stem in good}
        code = segment.refresh(found.plain, labels)
    if options.labels:
        _copy_labels(options.labels, good)
    return EXIT_SUBJECT_FAILED if failed else code


def _results(out: Path) -> _Results:
    """Find the derivatives in a folder of results."""
    from bagau_bids.bids.plain import PARTICIPANTS
    from bagau_bids.bids.tables import read_records
    from bagau_bids.reports.results import find_results

    plain = out if (out / segment.CLAIM).is_file() else None
    derivatives = out / segment.DERIVATIVES if plain else out
    results = find_results(derivatives) if derivatives.is_dir() else ()
    scans = {scan.stem: scan for scan in results}
    if not scans:
        raise UsageError(
            f"{out}: holds no results of a scan; expected the output folder of bagau-bids or of "
            "bagau segment"
        )
    names = {stem: stem for stem in scans}
    if plain:
        rows = read_records(plain / segment.DATA_SET / PARTICIPANTS, ("participant_id", "scan"))
        names |= {row["participant_id"]: row["scan"] for row in rows}
    return _Results(derivatives, plain, scans, names)


def _given(options: Options, found: _Results) -> Iterator[tuple[str, Path]]:
    """Pair scans, by their stems, with masks."""
    stems = {found.names[stem]: stem for stem in found.scans} | {
        stem: stem for stem in found.scans
    }
    if options.table:
        yield from _from_table(options, stems)
    elif options.masks is None:
        paths = {stem: found.own_mask(scan) for stem, scan in found.scans.items()}
        yield from ((stem, path) for stem, path in paths.items() if path.is_file())
    else:
        yield from _from_folder(options.masks, stems)


def _from_table(options: Options, stems: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    from bagau_bids.bids.tables import read_records

    if options.table is None:
        raise AssertionError("only asked with a table")
    folder = options.masks or options.table.parent
    for row in read_records(options.table, ("scan", "mask")):
        scan, path = _known(row["scan"], stems), folder / row["mask"]
        if scan is None:
            raise UsageError(
                f"{options.table}: scan {row['scan']} is not in {options.out}; expected one of "
                f"{', '.join([*stems][:5])}"
            )
        if not path.is_file():
            raise UsageError(f"{options.table}: {path} does not exist; check the column mask")
        yield stems[scan], path


def _known(name: str, stems: Mapping[str, str]) -> str | None:
    """Return the name of a scan as `stems` has it: as it is, or without the suffix of a FLAIR."""
    return next((one for one in (name, name.removesuffix("_FLAIR")) if one in stems), None)


def _from_folder(folder: Path, stems: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    from bagau_bids.bids.masks import NIFTI_EXTENSION, extension_of, find_lesion_masks

    if not folder.is_dir():
        raise UsageError(f"--masks {folder}: no such folder; expected one of edited masks")
    named = {mask.scan: mask.path for mask in find_lesion_masks(folder) if mask.space == "orig"}
    for path in sorted(folder.rglob("*.nii*")):
        stem = _known(NIFTI_EXTENSION.sub("", path.name), stems)
        if extension_of(path) and stem is not None:
            named.setdefault(stem, path)
    yield from ((stems[name], path) for name, path in named.items() if name in stems)


def _expected_names(found: _Results) -> str:
    scan = next(iter(found.scans.values()))
    return f"{scan.path('wmh_mask').name} or {found.names[scan.stem]}.nii.gz"


def _copy_labels(folder: Path, given: Mapping[str, Path]) -> None:
    """Write masks as a derivative data set, by the names of their scans."""
    import nibabel as nib

    from bagau_bids.bids.derivatives import derivative_path
    from bagau_bids.bids.edited import describe_edited
    from bagau_bids.evaluation.scoring import read_result_mask
    from bagau_bids.files import replacing

    describe_edited(folder, "WMH masks edited by hand")
    for stem, path in given.items():
        mask = read_result_mask(path)
        entities = dict(part.split("-", 1) for part in stem.split("_"))
        with replacing(derivative_path(folder, entities, "wmh_mask")) as temporary:
            nib.Nifti1Image(mask.data, mask.affine).to_filename(temporary)
    log.info("Masks for bagau train: %s", folder)
