"""What describes the output folder as a whole: a BIDS derivative data set with its citation."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from bagau_bids import __version__
from bagau_bids.bids.derivatives import catalogue
from bagau_bids.config import INFARCT_THRESHOLD, Processing
from bagau_bids.errors import UsageError
from bagau_bids.files import one_at_a_time, read_json, write_json, write_table, write_text
from bagau_bids.network.cards import DEFAULT_INPUTS, T1, Card, read_card

BIDS_VERSION = "1.11.1"
NAME = "bagau-bids"
LOCK_FILE = ".lock"
SOURCE_AUTHORS = ["The authors of the source data set"]  # where it does not name them
OWN_AUTHOR = "The bagau-bids developers"
LINKS = {
    "templateflow": "https://github.com/templateflow/templateflow",
    "nilearn": "https://github.com/nilearn/nilearn",
}
TEMPLATE_TEXTS = {
    "MNI152NLin2009cSym": "MNI152NLin2009cSym [@icbm152] from TemplateFlow [@templateflow]",
    "ICBM152NLin2009aSym": "ICBM 2009a nonlinear symmetric [@icbm152] from Nilearn [@nilearn]",
}
ATLAS_DESCRIPTIONS = {
    "MNI152NLin2009cSym": {
        "Name": "White matter probability of ICBM 152 Nonlinear Symmetric template version 2009c",
        "ReferencesAndLinks": ["https://doi.org/10.1016/j.neuroimage.2010.07.033"],
        "DerivedFrom": "TemplateFlow, tpl-MNI152NLin2009cSym_res-1_label-WM_probseg.nii.gz",
    },
    "ICBM152NLin2009aSym": {
        "Name": "White matter probability of ICBM 152 Nonlinear Symmetric template version 2009a",
        "ReferencesAndLinks": ["https://doi.org/10.1016/j.neuroimage.2010.07.033"],
        "DerivedFrom": "The maps that the Nilearn package carries",
    },
}
NETWORK_TEXTS = {
    "bagau_net": "BAGAU-Net [@bagaunet]",
    "unet": "the U-Net of the WMH Segmentation Challenge's winner [@li2018]",
}
REGISTRATION_TEXTS = {
    "robust": "adaptive stochastic gradient descent",
    "paper": "the settings of the paper on BAGAU-Net",
}
RULE_CITATIONS = {
    "10mm": "WMH up to 10 mm from the ventricles are called periventricular "
    "[@periventricular10mm].",
    "3mm": "WMH up to 3 mm from the ventricles are called juxtaventricular, from there to 13 mm "
    "periventricular [@periventricular3mm].",
}
MIRRORED_TEXT = (
    "The images mirrored from left to right were given to it too, and the probabilities averaged. "
)
INFARCT_TEXT = (
    "The network tells infarcts by an output of its own; voxels of a probability of infarct of "
    "{:g} or more were taken as infarct, unless WMH were the more probable. "
)
KNOWN_TEXT = (
    "Known lesions (infarct, tumour or resection) were given as masks; they were no WMH, and "
    "counted neither for the normalisation of the image nor for the registration. "
)


class Maker(msgspec.Struct, frozen=True, rename="pascal"):
    """A program that made a data set."""

    name: str
    version: str | None = None


class Description(msgspec.Struct, frozen=True, rename="pascal"):
    """What is read of the description that an output folder holds already."""

    generated_by: tuple[Maker, ...] = ()
    dataset_links: dict[str, str] = {}


def derivative_links(folders: Iterable[Path]) -> dict[str, Path]:
    """Name other derivative data sets for use in BIDS URIs.

    Parameters
    ----------
    folders : iterable of Path
        Their roots.

    Returns
    -------
    dict of str to Path
        Each root under its folder's name reduced to letters and digits; a name that is taken
        gets a number.
    """
    links: dict[str, Path] = {}
    for folder in folders:
        base = re.sub(r"[^0-9a-zA-Z]", "", folder.name) or "derivatives"
        name, number = base, 2
        while name in links or name in LINKS or name == "raw":
            name, number = f"{base}{number}", number + 1
        links[name] = folder
    return links


def linked_folders(processing: Processing) -> tuple[Path, ...]:
    """Roots of the other derivative data sets that a run takes something from, each once."""
    return tuple(dict.fromkeys((*processing.derivatives, *processing.known_lesions)))


def write_dataset_files(
    output_dir: Path, *, bids_dir: Path, processing: Processing
) -> tuple[str, ...]:
    """Describe the output folder: everything in it that belongs to no scan.

    Writes ``dataset_description.json``, ``.bidsignore``, ``README.md``, ``descriptions.tsv``
    and the citation (see `write_citation`). May run in several processes at once.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative data set; made where missing.
    bids_dir : Path
        Root of the data set that is processed.
    processing : Processing
        Options of this run; the citation and the links follow from them.

    Returns
    -------
    notes : tuple of str
        What is worth a warning: results of another version in the folder.

    Raises
    ------
    UsageError
        If the folder holds a data set that another program made, or a raw one.
    """
    path = output_dir / "dataset_description.json"
    earlier = _earlier_description(path)
    notes = []
    version = next((maker.version for maker in earlier.generated_by), None)
    if version not in (None, __version__):
        notes.append(
            f"{output_dir}: holds results of {NAME} {version}, this is {__version__}; files that "
            "are not made again stay as they are: use a new folder to keep versions apart"
        )
    links = _dataset_links(output_dir, bids_dir, processing)
    with one_at_a_time(output_dir / "logs" / LOCK_FILE):  # else one of two new links is lost
        there = _earlier_description(path).dataset_links
        write_json(path, _description(bids_dir, {**there, **links}))
    write_text(output_dir / ".bidsignore", "\n".join(catalogue().bidsignore) + "\n")
    write_text(output_dir / "README.md", _text("README.md"))
    rows = [(f"desc-{label}", text) for label, text in catalogue().descriptions.items()]
    write_table(
        output_dir / "descriptions.tsv", pd.DataFrame(rows, columns=["desc_id", "description"])
    )
    atlas = processing.template
    write_json(output_dir / f"atlas-{atlas}_description.json", ATLAS_DESCRIPTIONS[atlas])
    write_citation(output_dir, processing)
    return tuple(notes)


def write_citation(output_dir: Path, processing: Processing) -> None:
    """Write ``logs/CITATION.md`` (how the results were made) and ``logs/CITATION.bib``.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative data set.
    processing : Processing
        Options of this run.
    """
    write_text(output_dir / "logs" / "CITATION.md", citation_text(processing))
    write_text(output_dir / "logs" / "CITATION.bib", _text("references.bib"))


def citation_text(processing: Processing) -> str:
    """Methods section for a manuscript (Markdown) that fits the options of a run."""
    skipped = ", taken from other derivatives where they hold a mask"
    skull_strip = skipped if processing.derivatives else ""
    if processing.skull_strip == "skip":
        skull_strip = " (not used here: the images were skull-stripped beforehand)"
    weights = ", ".join(path.name for path in processing.weights)
    size = processing.min_lesion_size_mm3
    # Those that are missing are complained of elsewhere.
    cards = [read_card(path) for path in processing.weights if path.with_suffix(".json").is_file()]
    return _text("methods.md").format(
        **_network_texts(cards),
        version=__version__,
        skull_strip=skull_strip,
        template_text=TEMPLATE_TEXTS[processing.template],
        rule_text=RULE_CITATIONS[processing.periventricular_rule],
        registration_text=REGISTRATION_TEXTS[processing.registration],
        model_text=f"weights {weights}" if weights else f"model `{processing.model}`",
        tta_text=MIRRORED_TEXT if processing.tta else "",
        threshold=processing.threshold,
        infarct_text=INFARCT_TEXT.format(INFARCT_THRESHOLD) if processing.infarct else "",
        known_text=KNOWN_TEXT if processing.known_lesions else "",
        min_size_text=f", lesions below {size:g} mm3 were dropped" if size > 0 else "",
    )


def _network_texts(cards: Sequence[Card]) -> dict[str, str]:
    """Say which images the networks saw, and which networks they were."""
    inputs = {name for card in cards for name in card.inputs} or {*DEFAULT_INPUTS}
    kinds = {card.architecture for card in cards} & NETWORK_TEXTS.keys() or {"bagau_net"}
    seen = "The FLAIR, z-scored within the brain,"
    if T1 in inputs:
        seen = (
            "The FLAIR and the T1-weighted image of the same session, registered rigidly to it "
            "and corrected likewise, both z-scored within the brain,"
        )
    with_atlas = " and the white matter map" if "atlas" in inputs else ""
    return {
        "images_text": "FLAIR and T1-weighted images" if T1 in inputs else "FLAIR images alone",
        "inputs_text": f"{seen}{with_atlas} were" if len(inputs) > 1 else f"{seen} was",
        "network_text": " and ".join(NETWORK_TEXTS[kind] for kind in sorted(kinds)),
    }


def _text(name: str) -> str:
    return files("bagau_bids.data").joinpath("citation", name).read_text(encoding="utf-8")


def _earlier_description(path: Path) -> Description:
    """Read the description that is in the folder already; refuse one that is not ours."""
    if not path.is_file():
        return Description()
    found = read_json(
        path,
        Description,
        "expected the description of a data set: repair or remove it, or choose another output "
        "folder",
    )
    makers = [maker.name for maker in found.generated_by]
    if makers[:1] != [NAME]:
        what = f"made by {', '.join(makers)}" if makers else "not made by a pipeline"
        raise UsageError(
            f"{path.parent}: holds a data set {what}; expected an empty folder or one of {NAME}: "
            "choose another output folder, or one inside it"
        )
    return found


def _dataset_links(output_dir: Path, bids_dir: Path, processing: Processing) -> dict[str, str]:
    others = derivative_links(linked_folders(processing))
    locations = {name: _location(output_dir, path) for name, path in others.items()}
    return {"raw": _location(output_dir, bids_dir), **LINKS, **locations}


def _authors(raw: Mapping[str, Any]) -> list[str]:
    """Return the authors that a data set names; none where it does not as BIDS asks for."""
    found = raw.get("Authors")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _location(output_dir: Path, other: Path) -> str:
    """Relative path to a data set that the output folder lies in, else its ``file://`` URI."""
    output_dir, other = output_dir.resolve(), other.resolve()
    if output_dir.is_relative_to(other):
        return Path(os.path.relpath(other, output_dir)).as_posix()
    return other.as_uri()


def _description(bids_dir: Path, links: Mapping[str, str]) -> dict[str, Any]:
    generator: dict[str, Any] = {"Name": NAME, "Version": __version__}
    container = _container()
    if container:
        generator["Container"] = container
    description: dict[str, Any] = {
        "Name": "White matter hyperintensities by bagau-bids",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generator],
        "HowToAcknowledge": "Please include the text and the references of logs/CITATION.md.",
        "DatasetLinks": dict(links),
    }
    raw = _raw_description(bids_dir)
    source = {"URL": links["raw"]}
    if isinstance(raw.get("DatasetDOI"), str):
        source = {"DOI": raw["DatasetDOI"]}
    description["SourceDatasets"] = [source]
    description["Authors"] = [*(_authors(raw) or SOURCE_AUTHORS), OWN_AUTHOR]
    if isinstance(raw.get("License"), str):
        description["License"] = raw["License"]
    return description


def _container() -> dict[str, str]:
    """Container that the images' build files announce through the environment."""
    if tag := os.environ.get("BAGAU_DOCKER_TAG"):
        return {"Type": "docker", "Tag": tag}
    if uri := os.environ.get("BAGAU_SINGULARITY_URL"):
        return {"Type": "singularity", "URI": uri}
    return {}


def _raw_description(bids_dir: Path) -> dict[str, Any]:
    """Read the description of the raw data set; an empty one where none can be read."""
    try:
        found = json.loads((bids_dir / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
