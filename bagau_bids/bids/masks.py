"""Lesion masks of a BIDS derivative data set, each known by the scan it was drawn or made on."""

import re
from dataclasses import dataclass, field
from pathlib import Path

NIFTI_EXTENSION = re.compile(r"\.nii(\.gz)?$")
# What a mask's name may add to the entities of its scan.
FREE_ENTITIES = ("space", "label", "desc", "res")


@dataclass(frozen=True)
class LesionMask:
    """A WMH mask on disk.

    Attributes
    ----------
    path
        The image.
    entities
        Entities of its scan, short key to label, in the order of the name.
    space
        Label of ``space``; ``orig``, the scan's own, where the name has none.
    """

    path: Path
    entities: dict[str, str] = field(hash=False)
    space: str

    @property
    def scan(self) -> str:
        """Entities of its scan as in file names, e.g. ``sub-01_ses-2``."""
        return "_".join(f"{key}-{label}" for key, label in self.entities.items())


def name_entities(path: Path) -> dict[str, str]:
    """Entities of a BIDS file name, short key to label, in order; the suffix is left out."""
    parts = NIFTI_EXTENSION.sub("", path.name).split("_")[:-1]
    return dict(part.split("-", 1) for part in parts if "-" in part)


def lesion_mask_at(path: Path) -> LesionMask | None:
    """Read the name of a file; None where it is not that of a WMH mask of BIDS.

    Such a name holds the entities of the scan, ``label-WMH``, at most ``space``, ``desc`` and
    ``res`` besides, and the suffix ``mask``.
    """
    entities = name_entities(path)
    suffix = NIFTI_EXTENSION.sub("", path.name).split("_")[-1]
    named = NIFTI_EXTENSION.search(path.name) and suffix == "mask" and "sub" in entities
    if not named or entities.get("label") != "WMH":
        return None
    own = {key: label for key, label in entities.items() if key not in FREE_ENTITIES}
    return LesionMask(path, own, entities.get("space", "orig"))


def find_lesion_masks(folder: Path) -> list[LesionMask]:
    """Find the WMH masks below a folder, sorted by path; none where there is no such folder."""
    paths = sorted(folder.rglob("*_mask.nii*")) if folder.is_dir() else []
    return [mask for path in paths if (mask := lesion_mask_at(path)) is not None]
