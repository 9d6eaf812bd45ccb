"""``bagau synthetic-pool``: draw the synthetic slices that the segmentation network trains on."""

import argparse
import logging
import sys
from pathlib import Path

from bagau_bids import values
from bagau_bids.cli.labelled import add_device_option, add_template_options, template_of
from bagau_bids.errors import EXIT_OK, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.add_argument(
        "label_maps",
        metavar="LABEL_MAPS",
        type=Path,
        help="folder of whole-head label maps (*.nii.gz, FreeSurfer numbers, 5xx outside the "
        "brain), such as the training_label_maps of SynthSeg",
    )
    parser.add_argument(
        "output_dir",
        metavar="OUT",
        type=Path,
        help="folder of the pool, for bagau train --synthetic-pool; a drawing that was stopped "
        "goes on",
    )
    parser.add_argument(
        "--lesion-masks",
        metavar="DIR",
        type=Path,
        help="folder of binary lesion masks (*.nii.gz) in the template's space, whose shapes "
        "some lesions get (default: drawn shapes alone)",
    )
    parser.add_argument(
        "--exclude-lesion-masks",
        metavar="NAME",
        nargs="+",
        default=[],
        help="masks not used, above all those of subjects to validate on: patient26 for "
        "patient26_mask.nii.gz",
    )
    parser.add_argument(
        "--infarct-masks",
        metavar="DIR",
        type=Path,
        help="folder of binary masks of infarcts (*.nii.gz) in the template's space; infarcts of "
        "these shapes are in some scans, not labelled as WMH (default: no infarcts)",
    )
    parser.add_argument(
        "--exclude-infarct-masks",
        metavar="NAME",
        nargs="+",
        default=[],
        help="infarcts not used, above all those of subjects to validate on: names as for "
        "--exclude-lesion-masks, or text files (*.txt) with one name a line",
    )
    parser.add_argument(
        "--volumes",
        metavar="N",
        type=values.whole_number(0),
        default=400,
        help="scans to draw, a multiple of 10; of each, at most 32 slices are kept; 0 as "
        "--heads-only (default: %(default)s)",
    )
    parser.add_argument(
        "--heads-only",
        action="store_true",
        help="prepare the heads in the folder heads of OUT, and draw nothing",
    )
    parser.add_argument(
        "--seed",
        metavar="SEED",
        type=values.whole_number(0),
        default=0,
        help="of every scan (default: %(default)s)",
    )
    add_template_options(parser)
    add_device_option(
        parser, "scans are drawn, which decides with the seed what they are", default="cpu"
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=values.whole_number(1),
        default=1,
        help="CPU threads (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    label_maps = _images(args.label_maps, "whole-head label maps")
    masks = _masks(
        "lesion", args.lesion_masks, "--exclude-lesion-masks", args.exclude_lesion_masks
    )
    infarcts = _masks(
        "infarct", args.infarct_masks, "--exclude-infarct-masks", args.exclude_infarct_masks
    )

    import torch

    from bagau_bids.network.inference import choose_device
    from bagau_bids.preprocessing.code import ENGINE_CODE, code_digest
    from bagau_bids.synthesis.heads import SHARD_VOLUMES, draw_pool, prepare_heads
    from bagau_bids.synthesis.pool import claim_pool, open_pool

    device = choose_device(args.device)
    torch.set_num_threads(args.threads)
    template = template_of(args, args.output_dir / "cache")
    origin = {
        "label_maps": [path.name for path in label_maps],
        "lesion_masks": [path.name for path in masks],
        "infarct_masks": [path.name for path in infarcts],
        "template": args.template,
        "seed": args.seed,
        "device": device.type,  # its noise is another
        "volumes_per_shard": SHARD_VOLUMES,
        "engine": code_digest(ENGINE_CODE),
    }
    claim_pool(args.output_dir, origin)
    heads = prepare_heads(
        label_maps, template, masks, args.output_dir / "heads", infarcts, threads=args.threads
    )
    if args.heads_only or args.volumes == 0:
        print(f"{args.output_dir / 'heads'}: {len(heads)} heads")
        return EXIT_OK
    draw_pool(heads, args.output_dir, args.volumes, args.seed, str(device))
    print(f"{args.output_dir}: {len(open_pool(args.output_dir))} slices")
    return EXIT_OK


def _masks(kind: str, folder: Path | None, option: str, excluded: list[str]) -> list[Path]:
    """Masks of a folder but for those that an option excludes."""
    if folder is None:
        if excluded:
            raise UsageError(
                f"{option} {' '.join(excluded)}: there are no masks to leave it out of, expected "
                f"--{kind}-masks as well; give their folder"
            )
        return []

    from bagau_bids.synthesis.heads import without_masks

    paths = _images(folder, f"{kind} masks in the template's space")
    names = [name for word in excluded for name in _names(word)]
    return without_masks(paths, names, kind)


def _names(word: str) -> list[str]:
    """Return the names in a text file, or the word itself."""
    if not word.endswith(".txt"):
        return [word]
    try:
        return Path(word).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{word}: found no readable text file ({error}), expected names of masks, one a "
            "line; correct its path"
        ) from error


def _images(folder: Path, what: str) -> list[Path]:
    paths = sorted(folder.glob("*.nii.gz"))
    if not paths:
        raise UsageError(
            f"{folder}: found no *.nii.gz file, expected a folder of {what}; give the folder "
            "they lie in"
        )
    return paths
