"""``bagau pack``: preprocess what a streaming training reads, small enough to take elsewhere."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids import values
from bagau_bids.cli.labelled import LabelledData, Registration, labelled_scans
from bagau_bids.errors import EXIT_OK, ProcessingError, UsageError
from bagau_bids.options import REQUIRED, argument, option, part

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bagau_bids.preprocessing.template import Template

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the subcommand is told."""

    data: LabelledData = part(LabelledData)
    output_dir: Path = argument("new folder, for bagau train --stream", metavar="PACK")
    validation: tuple[str, ...] = option(
        REQUIRED,
        "subjects that are not trained on but judged by",
        metavar="LABEL",
        type=values.label("sub"),
    )
    exclude: tuple[str, ...] = option(
        (), "subjects not read", metavar="LABEL", type=values.label("sub")
    )
    heads: Path = option(
        REQUIRED,
        "prepared heads to draw synthetic scans from, as 'bagau synthetic-pool' leaves them",
        metavar="DIR",
    )
    stroke_slices: Path | None = option(
        None,
        "folder with slices.npz: axial slices of stroke patients in the template's space, "
        "with the outline of their infarcts",
        metavar="DIR",
    )
    cache: Path | None = option(
        None,
        "folder of preprocessed scans, kept from one pack to the next (default: PACK-cache)",
        metavar="DIR",
    )
    template: Registration = part(Registration)


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    from bagau_bids.datasets.labelled import prepare_scans, split_by_subject
    from bagau_bids.training.card import describe_dataset
    from bagau_bids.training.pack import PACK_FILE, Origin, write_pack

    if (options.output_dir / PACK_FILE).exists():
        raise UsageError(f"{options.output_dir}: holds a pack already; name another folder")
    split = split_by_subject(
        labelled_scans(options.data.pairs, options.exclude), validation=options.validation
    )
    cache_dir = options.cache or options.output_dir.with_name(f"{options.output_dir.name}-cache")
    cache_dir.mkdir(parents=True, exist_ok=True)
    template = options.template.find(cache_dir)
    prepared, left_out = prepare_scans(
        (*split.training, *split.validation), template, options.template.registration, cache_dir
    )
    training = [prepared[one] for one in split.training if one in prepared]
    validation = [prepared[one] for one in split.validation if one in prepared]
    if not validation:
        raise ProcessingError(
            f"none of {len(split.validation)} scans to validate on could be preprocessed; "
            "expected at least one, see the reasons above"
        )
    origin = Origin(
        datasets=[describe_dataset(bids_dir) for bids_dir, _ in options.data.pairs],
        template=options.template.template,
        registration=options.template.registration,
        left_out={one.scan.stem: reason for one, reason in left_out.items()},
    )
    write_pack(
        options.output_dir, training, validation, options.heads, _stroke(options, template), origin
    )
    size = sum(path.stat().st_size for path in options.output_dir.rglob("*") if path.is_file())
    print(
        f"{options.output_dir}: {len(training)} scans to train on, {len(validation)} to judge by, "
        f"{size / 2**20:.1f} MiB"
    )
    return EXIT_OK


def _stroke(options: Options, template: "Template") -> "dict[str, NDArray] | None":
    if options.stroke_slices is None:
        return None

    from bagau_bids.preprocessing.conform import read_volume
    from bagau_bids.training.stroke import stroke_arrays

    return stroke_arrays(options.stroke_slices, read_volume(template.wm_probseg))
