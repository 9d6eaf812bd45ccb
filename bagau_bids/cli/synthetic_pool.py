"""``bagau synthetic-pool``: draw the synthetic slices that the segmentation network trains on."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bagau_bids import values
from bagau_bids.cli.labelled import TemplateChoice, device_option
from bagau_bids.errors import EXIT_OK, UsageError
from bagau_bids.options import argument, option, part


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the subcommand is told."""

    label_maps: Path = argument(
        "folder of whole-head label maps (*.nii.gz, FreeSurfer numbers, 5xx outside the "
        "brain), such as the training_label_maps of SynthSeg",
        metavar="LABEL_MAPS",
    )
    output_dir: Path = argument(
        "folder of the pool, for bagau train --synthetic-pool; a drawing that was stopped goes on",
        metavar="OUT",
    )
    lesion_masks: Path | None = option(
        None,
        "folder of binary lesion masks (*.nii.gz) in the template's space, whose shapes "
        "some lesions get (default: drawn shapes alone)",
        metavar="DIR",
    )
    exclude_lesion_masks: tuple[str, ...] = option(
        (),
        "masks not used, above all those of subjects to validate on: patient26 for "
        "patient26_mask.nii.gz",
        metavar="NAME",
    )
    infarct_masks: Path | None = option(
        None,
        "folder of binary masks of infarcts (*.nii.gz) in the template's space; infarcts of "
        "these shapes are in some scans, not labelled as WMH (default: no infarcts)",
        metavar="DIR",
    )
    exclude_infarct_masks: tuple[str, ...] = option(
        (),
        "infarcts not used, above all those of subjects to validate on: names as for "
        "--exclude-lesion-masks, or text files (*.txt) with one name a line",
        metavar="NAME",
    )
    volumes: int = option(
        400,
        "scans to draw, a multiple of 10; of each, at most 32 slices are kept; 0 as "
        "--heads-only (default: %(default)s)",
        **values.at_least(0),
    )
    heads_only: bool = option(
        False, "prepare the heads in the folder heads of OUT, and draw nothing"
    )
    random_seed: int = option(
        0, "of every scan (default: %(default)s)", metavar="SEED", type=values.whole_number(0)
    )
    template: TemplateChoice = part(TemplateChoice)
    device: str = device_option(
        "scans are drawn, which decides with the seed what they are", default="cpu"
    )
    threads: int = option(1, "CPU threads (default: %(default)s)", **values.at_least(1))


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    label_maps = _images(options.label_maps, "whole-head label maps")
    masks = _masks(
        "lesion", options.lesion_masks, "--exclude-lesion-masks", options.exclude_lesion_masks
    )
    infarcts = _masks(
        "infarct", options.infarct_masks, "--exclude-infarct-masks", options.exclude_infarct_masks
    )

    import torch

    from bagau_bids.network.inference import choose_device
    from bagau_bids.synthesis.engine import ENGINE_VERSION
    from bagau_bids.synthesis.heads import SHARD_VOLUMES, draw_pool, prepare_heads
    from bagau_bids.synthesis.pool import claim_pool, open_pool

    device = choose_device(options.device)
    torch.set_num_threads(options.threads)
    template = options.template.find(options.output_dir / "cache")
    origin = {
        "label_maps": [path.name for path in label_maps],
        "lesion_masks": [path.name for path in masks],
        "infarct_masks": [path.name for path in infarcts],
        "template": options.template.template,
        "seed": options.random_seed,
        "device": device.type,  # its noise is another
        "volumes_per_shard": SHARD_VOLUMES,
        "engine": ENGINE_VERSION,
    }
    claim_pool(options.output_dir, origin)
    heads = prepare_heads(
        label_maps,
        template,
        masks,
        options.output_dir / "heads",
        infarcts,
        threads=options.threads,
    )
    if options.heads_only or options.volumes == 0:
        print(f"{options.output_dir / 'heads'}: {len(heads)} heads")
        return EXIT_OK
    draw_pool(heads, options.output_dir, options.volumes, options.random_seed, str(device))
    print(f"{options.output_dir}: {len(open_pool(options.output_dir))} slices")
    return EXIT_OK


def _masks(kind: str, folder: Path | None, option: str, excluded: Sequence[str]) -> list[Path]:
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
