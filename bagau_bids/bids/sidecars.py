"""Metadata of the files made from one scan: which file came from which, in what space, how.

Pure functions of the record of a scan's processing. The parts that never change are data
(``data/derivatives.json``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import asdict

from bagau_bids.bids.derivatives import bids_uri, catalogue, derivative_path
from bagau_bids.bids.records import Steps
from bagau_bids.config import INFARCT_THRESHOLD

RULE_TEXTS = {
    "10mm": (
        "Periventricular: up to 10 mm from the lateral ventricles (DeCarli 2005, "
        "doi:10.1161/01.STR.0000150668.58689.f2). Juxtacortical: up to 4 mm from the cortex of "
        "the registered template. Deep: the rest above the tentorium."
    ),
    "3mm": (
        "Juxtaventricular: up to 3 mm from the lateral ventricles; periventricular: from there "
        "to 13 mm; juxtacortical: up to 4 mm from the cortex, here that of the registered "
        "template; deep: the rest above the tentorium (Kim 2008, "
        "doi:10.1016/j.biopsych.2008.03.024)."
    ),
}
REPRODUCIBLE = (
    "The same FLAIR, version, options, seed and number of threads give the same bytes on the same "
    "processor. With other numbers of threads or of slices at once the masks have a Dice of 0.995 "
    "or more with each other, as measured on a few scans."
)
VENTRICLE_TEXTS = {
    "flair": "Dark CSF of the FLAIR that hangs together with the template's ventricles.",
    "template": "Ventricles of the registered template: CSF could not be told from tissue.",
}


@dataclass(frozen=True)
class Provenance:
    """What the sidecars of one scan are made from.

    Attributes
    ----------
    entities : mapping
        Entities of the source scan.
    source : str
        Path of the source scan relative to the raw data set.
    template : str
        Name of the template.
    template_uris : mapping of str to str
        BIDS URIs of the template's ``t1w``, ``wm_probseg`` and ``brain_mask``.
    brain_mask_uri : str
        BIDS URI of the brain mask that was taken from other derivatives; empty where it was made.
    steps : Steps
        Records; ``brain_mask``, ``registration``, ``regions`` and
        ``segmentation`` are used.
    threshold : float
        Probability from which a voxel is WMH.
    min_lesion_size_mm3 : float
        Smaller lesions were dropped.
    known_lesions_uri : str
        BIDS URI of the mask of known lesions; empty where there was none.
    infarct : bool
        Whether infarcts were put out.
    """

    entities: Mapping[str, Any]
    source: str
    template: str
    template_uris: Mapping[str, str]
    brain_mask_uri: str
    steps: Steps
    threshold: float
    min_lesion_size_mm3: float
    known_lesions_uri: str = ""
    infarct: bool = False

    @property
    def source_uri(self) -> str:
        """BIDS URI of the source scan."""
        return bids_uri("raw", self.source)

    def uri(self, name: str) -> str:
        """BIDS URI of one of the scan's own derivatives."""
        return bids_uri("", derivative_path(".", self.entities, name, template=self.template))


def image_sidecars(scan: Provenance) -> dict[str, dict[str, Any]]:
    """Sidecars of the images and transforms on or onto the FLAIR's own grid.

    Parameters
    ----------
    scan : Provenance

    Returns
    -------
    dict
        Metadata by the name of the derivative; complete, the static parts included.
    """
    steps = scan.steps
    masked, segmented, regions = steps.brain_mask, steps.segmentation, steps.regions
    assert masked  # whose files are described has all steps behind it
    assert segmented
    assert regions
    assert steps.registration
    template = scan.template_uris
    known = [scan.uri("known_lesion_mask")] if scan.known_lesions_uri else []
    network = {
        "Sources": [
            scan.uri("preproc_flair"),
            scan.uri("brain_mask"),
            scan.uri("wm_atlas"),
            *known,
        ],
        "Models": segmented.models,
        "Device": segmented.device,
        "Precision": segmented.precision,
        "AveragedWithMirrored": segmented.tta,
        "SlicesAtOnce": segmented.batch_size,
        "Threads": steps.registration.threads,
        "Seed": steps.registration.seed,
        "Reproducibility": REPRODUCIBLE,
    }
    probabilities = ["wmh_probseg", "infarct_probseg"] if scan.infarct else ["wmh_probseg"]
    smallest = {
        "MinimumLesionVolume": scan.min_lesion_size_mm3,
        "MinimumLesionVolumeUnits": "mm3",
    }
    rule = {
        "PeriventricularRule": regions.rule,
        "PeriventricularRuleDescription": RULE_TEXTS[regions.rule],
    }
    dynamic: dict[str, dict[str, Any]] = {
        "brain_mask": {
            "Description": masked.description,
            "Sources": [scan.brain_mask_uri or scan.source_uri],
        },
        "preproc_flair": {
            "SkullStripped": masked.stripped,
            "Sources": [scan.source_uri, scan.uri("brain_mask"), *known],
        },
        "conformed_flair": {
            "SkullStripped": masked.stripped,
            "Sources": [scan.source_uri],
        },
        "warped_t1w": {
            "SkullStripped": True,
            "Sources": [
                template["t1w"],
                template["brain_mask"],
                scan.uri("template_to_flair_xfm"),
            ],
        },
        "wm_atlas": {"Sources": [template["wm_probseg"], scan.uri("template_to_flair_xfm")]},
        "wmh_probseg": network,
        "wmh_mask": {
            "Sources": [scan.uri(name) for name in probabilities],
            "Threshold": scan.threshold,
            **smallest,
        },
        "lesions_dseg": {"Sources": [scan.uri("wmh_mask")]},
        "ventricle_mask": {
            "Sources": [
                scan.uri("preproc_flair"),
                scan.uri("brain_mask"),
                scan.uri("wm_atlas"),
                scan.uri("template_to_flair_xfm"),
            ],
            "Method": VENTRICLE_TEXTS[regions.ventricles],
        },
        "regions_dseg": {
            "Sources": [scan.uri("wmh_mask"), *_region_sources(scan)],
            **rule,
        },
        "brain_regions_dseg": {
            "Sources": [scan.uri("brain_mask"), *_region_sources(scan)],
            **rule,
        },
    }
    if scan.infarct:
        dynamic["infarct_probseg"] = network
        dynamic["infarct_mask"] = {
            "Sources": [scan.uri(name) for name in probabilities],
            "Threshold": INFARCT_THRESHOLD,
            **smallest,
        }
    if scan.known_lesions_uri:
        dynamic["known_lesion_mask"] = {"Sources": [scan.known_lesions_uri]}
    complete = {
        name: {**catalogue().files[name].sidecar, **fields, "SpatialReference": scan.source_uri}
        for name, fields in dynamic.items()
    }
    for name, ends in (
        ("template_to_flair_xfm", (scan.template, "FLAIR")),
        ("flair_to_template_xfm", ("FLAIR", scan.template)),
    ):
        complete[name] = {**catalogue().files[name].sidecar, **_transform_fields(scan, *ends)}
    return complete


def template_sidecars(scan: Provenance) -> dict[str, dict[str, Any]]:
    """Sidecars of the copies in the space of the template; arguments as `image_sidecars`."""
    sources = {
        "template_wmh_mask": "wmh_mask",
        "template_wmh_probseg": "wmh_probseg",
        "template_flair": "preproc_flair",
    }
    complete = {}
    for name, source in sources.items():
        complete[name] = {
            **catalogue().files[name].sidecar,
            "Sources": [scan.uri(source), scan.uri("flair_to_template_xfm")],
            "SpatialReference": scan.template_uris["t1w"],
        }
    assert scan.steps.brain_mask
    complete["template_flair"]["SkullStripped"] = scan.steps.brain_mask.stripped
    return complete


def _region_sources(scan: Provenance) -> list[str]:
    return [scan.uri("ventricle_mask"), scan.uri("template_to_flair_xfm")]


def _transform_fields(scan: Provenance, origin: str, destination: str) -> dict[str, Any]:
    assert scan.steps.registration
    registration = asdict(scan.steps.registration)
    return {
        "From": origin,
        "To": destination,
        "Mode": "image",
        "Type": "ITK composite transform (HDF5)",
        "CoordinateSystem": "world coordinates in mm, LPS+",
        "Sources": [
            scan.template_uris["t1w"],
            scan.template_uris["brain_mask"],
            scan.uri("preproc_flair"),
            scan.uri("brain_mask"),
        ],
        "Registration": {
            key: value for key, value in registration.items() if key not in ("notes", "duration_s")
        },
    }
