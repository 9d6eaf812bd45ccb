"""What the card of trained weights says of their data and their preprocessing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import UNSET, Struct, UnsetType, field, to_builtins

from bagau_bids import __version__
from bagau_bids.datasets.labelled import Split
from bagau_bids.files import read_json
from bagau_bids.network import slices
from bagau_bids.training.settings import TrainingSettings


class Stated(Struct, frozen=True, rename="pascal"):
    """What a card repeats of ``dataset_description.json``, whatever the type it is stated in."""

    name: Any | UnsetType = UNSET
    license: Any | UnsetType = UNSET
    authors: Any | UnsetType = UNSET
    references_and_links: Any | UnsetType = UNSET
    doi: Any | UnsetType = field(default=UNSET, name="DatasetDOI")


def training_card(
    settings: TrainingSettings,
    split: Split,
    bids_dirs: Sequence[Path],
    *,
    template: str,
    registration: str,
    licence: str,
    synthetic_pool: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a training, as far as the trainer does not know it itself.

    Parameters
    ----------
    settings : TrainingSettings
    split : Split
        The scans of each part.
    bids_dirs : sequence of Path
        The data sets, in the order of their numbers in `split`.
    template, registration : str
        Options of the preprocessing.
    licence : str
        Of the weights.
    synthetic_pool : mapping, optional
        What the synthetic slices were drawn from.
    """
    return {
        "name": f"{settings.architecture} {settings.width}",
        "software": f"bagau-bids {__version__}",
        "licence": licence,
        "preprocessing": {
            "template": template,
            "registration": registration,
            **preprocessing_facts(),
        },
        "training_data": [
            {
                **describe_dataset(bids_dir),
                **{
                    part: [s.scan.stem for s in getattr(split, part) if s.dataset == number]
                    for part in ("training", "validation", "test")
                },
            }
            for number, bids_dir in enumerate(bids_dirs)
        ],
        "synthetic_share": settings.synthetic_fraction,
        "synthetic_pool": None if synthetic_pool is None else dict(synthetic_pool),
    }


def preprocessing_facts() -> dict[str, Any]:
    """State how a scan becomes the network's input, but for the registration."""
    return {
        "plane": "axial slices of the RAS volume, in-plane 1 mm",
        "plane_size": slices.PLANE_SIZE,
        "slab_mm": slices.SLAB_MM,
        "brain_margin_mm": slices.BRAIN_MARGIN_MM,
        "z_score_percentiles": slices.Z_SCORE_PERCENTILES,
        "z_score_limits": slices.Z_SCORE_LIMITS,
    }


def describe_dataset(bids_dir: Path) -> dict[str, Any]:
    """Name, licence and references of a data set, as far as it states them.

    Raises
    ------
    UsageError
        If the file that states them cannot be read or is damaged.
    """
    path = bids_dir / "dataset_description.json"
    hint = "expected a JSON object in UTF-8 without byte order mark, as BIDS has it; correct it"
    stated = read_json(path, Stated, hint) if path.is_file() else Stated()
    return to_builtins(stated) or {"Name": bids_dir.name}
