"""What the card of trained weights says of their data and their preprocessing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bagau_bids import __version__
from bagau_bids.datasets.labelled import Split
from bagau_bids.network import slices
from bagau_bids.training.settings import TrainingSettings


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
    """Name, licence and references of a data set, as far as it states them."""
    path = bids_dir / "dataset_description.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = ("Name", "License", "Authors", "ReferencesAndLinks", "DatasetDOI")
    return {key: known[key] for key in kept if key in known} or {"Name": bids_dir.name}
