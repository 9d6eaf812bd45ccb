"""The workflow of one FLAIR, from the file in the data set to its derivatives."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import SimpleInterface
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from bagau_bids.bids.acquisition import sidecars_of
from bagau_bids.bids.scans import Scan
from bagau_bids.config import Processing, Resources
from bagau_bids.workflow.outputs import TEMPLATE_FILES, Prepare, PutOut, TemplateCopies
from bagau_bids.workflow.preprocessing import (
    BiasField,
    BrainMask,
    Conform,
    Regions,
    Registration,
    T1w,
)
from bagau_bids.workflow.segmentation import Measure, Segmentation

if TYPE_CHECKING:
    from bagau_bids.preprocessing.template import Template

STEPS = (
    "conform",
    "brain_mask",
    "bias_field",
    "registration",
    "t1w",
    "regions",
    "segmentation",
    "measure",
    "template_copies",
    "prepare",
    "put_out",
)
# Peak memory of the process that runs a step, its libraries and children included: measured on
# 320x320x48 voxels (0.15, 0.44, 0.55, 1.2, 0.8, 0.8, 1.6, 1.2, 0.2), rounded up for larger
# scans; the segmentation for the full-width network.
MEMORY_GB = {
    "conform": 0.5,
    "brain_mask": 0.8,
    "bias_field": 0.8,
    "registration": 1.5,
    "t1w": 1.5,
    "regions": 1.2,
    "segmentation": 2.5,
    "measure": 1.2,
    "template_copies": 1.8,
    "prepare": 1.2,
    "put_out": 0.3,
}
THREADED_STEPS = ("brain_mask", "bias_field", "registration", "t1w", "segmentation")

PREPROCESSED = (
    "conformed",
    "known_lesions",
    "brain_mask",
    "corrected",
    "wm_probseg",
    "warped_t1w",
    "template_to_flair_xfm",
    "flair_to_template_xfm",
    "ventricles",
    "brain_regions",
    "brain_regions_table",
    "conform_record",
    "brain_mask_record",
    "bias_field_record",
    "registration_record",
    "regions_record",
)
MEASURE_INPUTS = (
    "known_lesions",
    "ventricles",
    "regions",
    "template_points",
    "warped_t1w",
    "conform_record",
    "brain_mask_record",
    "registration_record",
    "regions_record",
)
SEGMENTATION_INPUTS = ("corrected", "brain_mask", "wm_probseg", *MEASURE_INPUTS)
MEASURED = (
    "wmh_mask",
    "lesions",
    "wmh_regions",
    "volumes_table",
    "lesions_table",
    "regions_table",
    "fazekas_table",
    "quality_table",
)
SEGMENTED = (
    "probability",
    "infarct_probability",
    "infarct_mask",
    *MEASURED,
    "segmentation_record",
    "measure_record",
)
# Options that make a result, as opposed to those that say where its materials lie.
RESULT_OPTIONS = (
    "template",
    "registration",
    "skull_strip",
    "model",
    "tta",
    "infarct",
    "ignore_lesion_roi",
    "threshold",
    "min_lesion_size_mm3",
    "periventricular_rule",
    "random_seed",
    "sloppy",
)


@dataclass(frozen=True)
class Materials:
    """Files that a scan is processed with.

    Attributes
    ----------
    template
        The template.
    template_uris
        BIDS URIs of its ``t1w``, ``wm_probseg`` and ``brain_mask``.
    weights
        Weights of the network; several are averaged.
    brain_network
        SHA-256 of the weights of the network that outlines the brain.
    brain_mask
        Brain mask of this FLAIR from elsewhere, if there is one.
    brain_mask_uri
        Its BIDS URI.
    t1w
        T1w of the same session, where the network asks for one.
    t1w_note
        What to tell about how it was chosen.
    known_lesions
        Mask of what the user knows to be no WMH, if there is one.
    known_lesions_note
        What to tell about how it was chosen.
    known_lesions_uri
        Its BIDS URI.
    """

    template: "Template"
    template_uris: Mapping[str, str]
    weights: tuple[Path, ...]
    brain_network: str = ""
    brain_mask: Path | None = None
    brain_mask_uri: str = ""
    t1w: Path | None = None
    t1w_note: str = ""
    known_lesions: Path | None = None
    known_lesions_note: str = ""
    known_lesions_uri: str = ""


def workflow_name(stem: str) -> str:
    """Name of a scan's workflow and of its work folder."""
    return re.sub(r"[^0-9a-zA-Z]", "_", stem) + "_wf"


def scan_steps(processing: Processing) -> tuple[str, ...]:
    """Names of the steps of one scan, in order."""
    optional = {"template_copies": wants_template_space, "t1w": wants_t1w}
    return tuple(step for step in STEPS if step not in optional or optional[step](processing))


def result_options(processing: Processing) -> dict[str, Any]:
    """Options that make a result, without the places where its materials lie."""
    options = {name: getattr(processing, name) for name in RESULT_OPTIONS}
    if processing.weights:
        options["model"] = ", ".join(path.stem for path in processing.weights)
    return options


def wants_t1w(processing: Processing) -> bool:
    """Tell whether a network of the user's asks for a T1w; those that ship ask for none."""
    from bagau_bids.network.weights import inputs_of_card, read_card

    return any("t1" in inputs_of_card(read_card(path)) for path in processing.weights)


def wants_template_space(processing: Processing) -> bool:
    """Tell whether results are wanted in the space of the template too."""
    return processing.template in processing.output_spaces


def init_flair_wf(
    *,
    scan: Scan,
    bids_dir: Path,
    output_dir: Path,
    materials: Materials,
    processing: Processing,
    resources: Resources,
) -> pe.Workflow:
    """Build the workflow of one FLAIR; nothing is read or run.

    Parameters
    ----------
    scan : Scan
        The FLAIR.
    bids_dir : Path
        Root of its data set.
    output_dir : Path
        Root of the derivative data set.
    materials : Materials
        Template, weights, and a brain mask where one was found.
    processing : Processing
        What makes the result.
    resources : Resources
        Threads and device; they do not make a step run again.

    Returns
    -------
    nipype.Workflow
        Named by `workflow_name` of the scan's stem, its nodes by `scan_steps`. It has no inputs
        to connect and no outputs: it ends with files in `output_dir`, named as
        `bagau_bids.bids.derivatives` says.
    """
    workflow = pe.Workflow(workflow_name(scan.stem))
    preprocessing = init_preprocessing_wf(
        in_file=scan.path, materials=materials, processing=processing, resources=resources
    )
    segmentation = init_segmentation_wf(
        weights=materials.weights, processing=processing, resources=resources
    )
    needed = list(SEGMENTATION_INPUTS)
    if materials.t1w is not None:
        needed.append("t1w")
    pairs = [(f"outputnode.{name}", f"inputnode.{name}") for name in needed]
    workflow.connect([(preprocessing, segmentation, pairs)])
    derivatives = init_derivatives_wf(
        source={
            "source_file": scan.path,
            "source": scan.path.relative_to(bids_dir).as_posix(),
            "entities": dict(scan.entities),
        },
        output_dir=output_dir,
        materials=materials,
        processing=processing,
        resources=resources,
    )
    with_t1w = ("t1w_record",) if materials.t1w is not None else ()
    for results, names in (
        (preprocessing, (*PREPROCESSED, *with_t1w)),
        (segmentation, SEGMENTED),
    ):
        pairs = [(f"outputnode.{name}", f"inputnode.{name}") for name in names]
        workflow.connect([(results, derivatives, pairs)])
    return workflow


def init_preprocessing_wf(
    *, in_file: Path, materials: Materials, processing: Processing, resources: Resources
) -> pe.Workflow:
    """Build what comes before the network: brain mask, bias field, registrations, regions.

    Parameters
    ----------
    in_file : Path
        The FLAIR.
    materials, processing, resources
        As for `init_flair_wf`.

    Outputs
    -------
    conformed, brain_mask, corrected
        FLAIR as it was read, brain mask and bias-corrected FLAIR, on the conformed grid.
    known_lesions
        Known lesions on the same grid, where `materials` has a mask of them.
    wm_probseg, warped_t1w
        White matter and T1w of the template, on the same grid.
    template_to_flair_xfm, flair_to_template_xfm
        ITK transforms, named after the images they resample.
    ventricles, regions
        Lateral ventricles, and the region of every voxel of the brain.
    brain_regions, brain_regions_table
        The regions as they are put out, and what their values mean.
    template_points
        Place in the template of a lattice over the FLAIR.
    t1w
        T1w on the conformed grid, where `materials` has one.
    conform_record, brain_mask_record, bias_field_record, registration_record, regions_record,
    t1w_record
        Records of the steps.
    """
    workflow = pe.Workflow("preprocessing")
    fields = [*PREPROCESSED, "regions", "template_points", "t1w", "t1w_record"]
    outputnode = pe.Node(IdentityInterface(fields=fields), "outputnode")

    conform = _node("conform", Conform(in_file=in_file, **_sidecars(in_file)), resources)
    if materials.known_lesions is not None:
        conform.inputs.lesion_file = materials.known_lesions
        conform.inputs.lesion_note = materials.known_lesions_note
    workflow.connect(conform, "flair", outputnode, "conformed")
    workflow.connect(conform, "record", outputnode, "conform_record")

    brain_mask = _node(
        "brain_mask",
        BrainMask(skull_strip=processing.skull_strip, network=materials.brain_network),
        resources,
    )
    if materials.brain_mask is not None:
        brain_mask.inputs.mask_file = materials.brain_mask
    workflow.connect(conform, "flair", brain_mask, "flair")
    workflow.connect(brain_mask, "brain_mask", outputnode, "brain_mask")
    workflow.connect(brain_mask, "record", outputnode, "brain_mask_record")

    bias_field = _node("bias_field", BiasField(), resources)
    workflow.connect(conform, "flair", bias_field, "flair")
    workflow.connect(brain_mask, "brain_mask", bias_field, "brain_mask")
    workflow.connect(bias_field, "corrected", outputnode, "corrected")
    workflow.connect(bias_field, "record", outputnode, "bias_field_record")

    registration = _node("registration", _registration(materials, processing), resources)
    workflow.connect(bias_field, "corrected", registration, "corrected")
    workflow.connect(brain_mask, "brain_mask", registration, "brain_mask")
    workflow.connect(registration, "record", outputnode, "registration_record")
    for name in (
        "wm_probseg",
        "warped_t1w",
        "template_to_flair_xfm",
        "flair_to_template_xfm",
        "template_points",
    ):
        workflow.connect(registration, name, outputnode, name)

    if materials.t1w is not None:
        t1w = _node(
            "t1w",
            T1w(in_file=materials.t1w, note=materials.t1w_note, seed=processing.random_seed),
            resources,
        )
        workflow.connect(conform, "flair", t1w, "flair")
        workflow.connect(brain_mask, "brain_mask", t1w, "brain_mask")
        workflow.connect(t1w, "t1w", outputnode, "t1w")
        workflow.connect(t1w, "record", outputnode, "t1w_record")

    regions = _node("regions", Regions(rule=processing.periventricular_rule), resources)
    workflow.connect(bias_field, "corrected", regions, "corrected")
    workflow.connect(brain_mask, "brain_mask", regions, "brain_mask")
    workflow.connect(registration, "wm_probseg", regions, "wm_probseg")
    workflow.connect(registration, "template_points", regions, "template_points")
    workflow.connect(regions, "record", outputnode, "regions_record")
    for name in ("ventricles", "regions", "brain_regions", "brain_regions_table"):
        workflow.connect(regions, name, outputnode, name)

    if materials.known_lesions is not None:
        for node in (bias_field, registration, regions, outputnode):
            workflow.connect(conform, "known_lesions", node, "known_lesions")
    return workflow


def init_segmentation_wf(
    *, weights: tuple[Path, ...], processing: Processing, resources: Resources
) -> pe.Workflow:
    """Build the network and what is measured on its result.

    Parameters
    ----------
    weights : tuple of Path
        Weights of the network; several are averaged.
    processing, resources
        As for `init_flair_wf`.

    Inputs
    ------
    corrected, brain_mask, wm_probseg, known_lesions, ventricles, regions, template_points,
    registration_record, regions_record, t1w
        As `init_preprocessing_wf` puts them out; the last only where a network asks for it.

    Outputs
    -------
    probability, wmh_mask, lesions, wmh_regions
        WMH probability, mask, numbered lesions and the mask by region, on the conformed grid.
    infarct_probability, infarct_mask
        The same of infarcts, where `processing` asks for them.
    volumes_table, lesions_table, regions_table, fazekas_table, quality_table
        TSV files.
    segmentation_record, measure_record
        Records of the steps.
    """
    workflow = pe.Workflow("segmentation")
    inputs = ("corrected", "brain_mask", "wm_probseg", "known_lesions")
    inputnode = pe.Node(IdentityInterface(fields=[*SEGMENTATION_INPUTS, "t1w"]), "inputnode")
    outputnode = pe.Node(IdentityInterface(fields=list(SEGMENTED)), "outputnode")

    segmentation = _node(
        "segmentation",
        Segmentation(
            weights=list(weights),
            cards=[path.with_suffix(".json") for path in weights],
            tta=processing.tta,
            device=resources.device,
            batch_size=resources.batch_size,
            use_gpu=resources.device.startswith("cuda"),
        ),
        resources,
    )
    workflow.connect([(inputnode, segmentation, [(name, name) for name in (*inputs, "t1w")])])
    workflow.connect(segmentation, "probability", outputnode, "probability")
    workflow.connect(segmentation, "record", outputnode, "segmentation_record")
    if processing.infarct:
        workflow.connect(segmentation, "infarct_probability", outputnode, "infarct_probability")

    measure = _node(
        "measure",
        Measure(
            threshold=processing.threshold,
            min_lesion_size_mm3=processing.min_lesion_size_mm3,
            rule=processing.periventricular_rule,
            infarct=processing.infarct,
        ),
        resources,
    )
    workflow.connect([(inputnode, measure, [(name, name) for name in SEGMENTATION_INPUTS])])
    for name in ("probability", "infarct_probability"):
        workflow.connect(segmentation, name, measure, name)
    workflow.connect(measure, "record", outputnode, "measure_record")
    for name in (*MEASURED, "infarct_mask"):
        workflow.connect(measure, name, outputnode, name)
    return workflow


def init_derivatives_wf(
    *,
    source: Mapping[str, Any],
    output_dir: Path,
    materials: Materials,
    processing: Processing,
    resources: Resources,
) -> pe.Workflow:
    """Build what comes last: copies in template space where wanted, and the derivatives.

    Parameters
    ----------
    source : mapping
        ``source_file``, ``source`` (relative to the data set) and ``entities`` of the FLAIR.
    output_dir : Path
        Root of the derivative data set.
    materials, processing, resources
        As for `init_flair_wf`.

    Inputs
    ------
    All outputs of `init_preprocessing_wf` and `init_segmentation_wf`.
    """
    workflow = pe.Workflow("derivatives")
    inputs = (*PREPROCESSED, *SEGMENTED, "t1w_record")
    inputnode = pe.Node(IdentityInterface(fields=list(inputs)), "inputnode")

    prepare = _node(
        "prepare",
        Prepare(
            **source,
            template=materials.template.name,
            template_uris=dict(materials.template_uris),
            brain_mask_uri=materials.brain_mask_uri,
            known_lesions_uri=materials.known_lesions_uri,
            options=result_options(processing),
        ),
        resources,
    )
    workflow.connect([(inputnode, prepare, [(name, name) for name in inputs])])

    if wants_template_space(processing):
        copies = _node(
            "template_copies", TemplateCopies(template_t1w=materials.template.t1w), resources
        )
        needed = ("wmh_mask", "probability", "corrected", "template_to_flair_xfm")
        workflow.connect([(inputnode, copies, [(name, name) for name in needed])])
        workflow.connect([(copies, prepare, [(name, name) for name in TEMPLATE_FILES])])

    put_out = _node("put_out", PutOut(output_dir=output_dir), resources)
    handed_over = [(name, name) for name in ("tree", "files", "digests", "stale")]
    workflow.connect([(prepare, put_out, handed_over)])
    return workflow


def _sidecars(in_file: Path) -> dict[str, list[Path]]:
    """JSON files that say how a FLAIR was acquired, as an input of its first step."""
    found = sidecars_of(in_file)
    return {"sidecars": list(found)} if found else {}


def _registration(materials: Materials, processing: Processing) -> Registration:
    template = materials.template
    return Registration(
        template=template.name,
        template_t1w=template.t1w,
        template_wm_probseg=template.wm_probseg,
        template_brain_mask=template.brain_mask,
        method="sloppy" if processing.sloppy else processing.registration,
        seed=processing.random_seed,
    )


def _node(step: str, interface: SimpleInterface, resources: Resources) -> pe.Node:
    """Make the node of a step with what it needs in threads and memory."""
    threads = min(resources.omp_nthreads, resources.nprocs) if step in THREADED_STEPS else 1
    node = pe.Node(interface, step, n_procs=threads, mem_gb=MEMORY_GB[step])
    if "compress" in interface.inputs.trait_names():
        interface.inputs.compress = not resources.low_mem
    return node
