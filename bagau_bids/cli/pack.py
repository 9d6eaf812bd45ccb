"""``bagau pack``: preprocess what a streaming training reads, small enough to take elsewhere."""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids import values
from bagau_bids.cli.labelled import (
    add_mask_options,
    add_registration_option,
    add_template_options,
    datasets,
    labelled_scans,
    template_of,
)
from bagau_bids.errors import EXIT_OK, ProcessingError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bagau_bids.preprocessing.template import Template

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.add_argument("bids_dir", metavar="BIDS_DIR", type=Path, help="BIDS data set of FLAIRs")
    parser.add_argument(
        "output_dir", metavar="PACK", type=Path, help="new folder, for bagau train --stream"
    )
    add_mask_options(parser)
    label = values.label("sub")
    parser.add_argument(
        "--validation",
        metavar="LABEL",
        nargs="+",
        type=label,
        required=True,
        help="subjects that are not trained on but judged by",
    )
    parser.add_argument(
        "--exclude", metavar="LABEL", nargs="+", type=label, default=[], help="subjects not read"
    )
    parser.add_argument(
        "--heads",
        metavar="DIR",
        type=Path,
        required=True,
        help="prepared heads to draw synthetic scans from, as 'bagau synthetic-pool' leaves them",
    )
    parser.add_argument(
        "--stroke-slices",
        metavar="DIR",
        type=Path,
        help="folder with slices.npz: axial slices of stroke patients in the template's space, "
        "with the outline of their infarcts",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        help="folder of preprocessed scans, kept from one pack to the next (default: PACK-cache)",
    )
    add_template_options(parser)
    add_registration_option(parser)


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    from bagau_bids.datasets.labelled import prepare_scans, split_by_subject
    from bagau_bids.training.card import describe_dataset
    from bagau_bids.training.pack import PACK_FILE, write_pack

    if (args.output_dir / PACK_FILE).exists():
        raise UsageError(f"{args.output_dir}: holds a pack already; name another folder")
    split = split_by_subject(
        labelled_scans(datasets(args), args.exclude), validation=args.validation
    )
    cache_dir = args.cache or args.output_dir.with_name(f"{args.output_dir.name}-cache")
    cache_dir.mkdir(parents=True, exist_ok=True)
    template = template_of(args, cache_dir)
    prepared, left_out = prepare_scans(
        (*split.training, *split.validation), template, args.registration, cache_dir
    )
    training = [prepared[one] for one in split.training if one in prepared]
    validation = [prepared[one] for one in split.validation if one in prepared]
    if not validation:
        raise ProcessingError(
            f"none of {len(split.validation)} scans to validate on could be preprocessed; "
            "expected at least one, see the reasons above"
        )
    origin = {
        "datasets": [describe_dataset(bids_dir) for bids_dir, _ in datasets(args)],
        "template": args.template,
        "registration": args.registration,
        "left_out": {one.scan.stem: reason for one, reason in left_out.items()},
    }
    write_pack(args.output_dir, training, validation, args.heads, _stroke(args, template), origin)
    size = sum(path.stat().st_size for path in args.output_dir.rglob("*") if path.is_file())
    print(
        f"{args.output_dir}: {len(training)} scans to train on, {len(validation)} to judge by, "
        f"{size / 2**20:.1f} MiB"
    )
    return EXIT_OK


def _stroke(args: argparse.Namespace, template: "Template") -> "dict[str, NDArray] | None":
    if args.stroke_slices is None:
        return None

    from bagau_bids.preprocessing.conform import read_volume
    from bagau_bids.training.stroke import stroke_arrays

    white = read_volume(template.wm_probseg)
    values: np.ndarray = white.values
    return stroke_arrays(args.stroke_slices, values, white.affine)
