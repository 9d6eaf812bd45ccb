"""The workflow of one FLAIR, from the file in the data set to its derivatives."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs
from nipype.interfaces.base import Undefined
from nipype.pipeline import engine as pe

from bagau_bids.bids.belongings import Belongings
from bagau_bids.bids.records import Options
from bagau_bids.config import Processing, Resources
from bagau_bids.network.cards import T1, Networks
from bagau_bids.workflow.outputs import Prepare, PutOut, TemplateCopies
from bagau_bids.workflow.preprocessing import (
    BiasField,
    BrainMask,
    Conform,
    Regions,
    Registration,
    T1w,
)
from bagau_bids.workflow.segmentation import Measure, Segmentation
from bagau_bids.workflow.step import Step, StepOutputSpec

if TYPE_CHECKING:
    from bagau_bids.preprocessing.template import Template

STEPS = (
    Conform,
    BrainMask,
    BiasField,
    Registration,
    T1w,
    Regions,
    Segmentation,
    Measure,
    TemplateCopies,
    Prepare,
    PutOut,
)


def workflow_name(stem: str) -> str:
    """Name of a scan's workflow and of its work folder."""
    return re.sub(r"[^0-9a-zA-Z]", "_", stem) + "_wf"


def scan_steps(processing: Processing, networks: Networks) -> tuple[str, ...]:
    """Names of the steps of one scan, in order."""
    optional = {TemplateCopies: wants_template_space(processing), T1w: networks.take(T1)}
    return tuple(step.name for step in STEPS if optional.get(step, True))


def result_options(processing: Processing) -> Options:
    """Options that make a result, without the places where its inputs lie."""
    options = {name: getattr(processing, name) for name in Options.__struct_fields__}
    if processing.weights:
        options["model"] = ", ".join(path.stem for path in processing.weights)
    return Options(**options)


def wants_template_space(processing: Processing) -> bool:
    """Tell whether results are wanted in the space of the template too."""
    return processing.template in processing.output_spaces


def init_flair_wf(
    *,
    belongings: Belongings,
    template: "Template",
    networks: Networks,
    output_dir: Path,
    processing: Processing,
    resources: Resources,
) -> pe.Workflow:
    """Build the workflow of one FLAIR; nothing is read or run.

    Parameters
    ----------
    belongings : Belongings
        The FLAIR and what belongs to it.
    template : Template
        The template.
    networks : Networks
        Weights of the networks.
    output_dir : Path
        Root of the derivative data set.
    processing : Processing
        What makes the result.
    resources : Resources
        Threads and device; they do not make a step run again.

    Returns
    -------
    nipype.Workflow
        Named by `workflow_name` of the scan's stem, its nodes by their steps. It has no inputs to
        connect and no outputs: it ends with files in `output_dir`, named as
        `bagau_bids.bids.derivatives` says.
    """
    scan, mask, lesions = belongings.scan, belongings.brain_mask, belongings.known_lesions
    workflow = pe.Workflow(workflow_name(scan.stem))
    made: dict[str, tuple[pe.Node, str]] = {}
    steps = [
        *_preprocessing(belongings, template, networks, processing),
        *_segmentation(networks, processing, resources),
    ]
    if wants_template_space(processing):
        steps.append(TemplateCopies(template_t1w=template.t1w))
    prepare = Prepare(
        steps=[step.name for step in steps],
        source_file=scan.path,
        source=belongings.source,
        entities=dict(scan.entities),
        template=template.name,
        template_uris=template.uris,
        brain_mask_uri=mask.uri if mask else "",
        known_lesions_uri=lesions.uri if lesions else "",
        options=structs.asdict(result_options(processing)),
    )
    put_out = PutOut(output_dir=output_dir, entities=dict(scan.entities))
    for step in (*steps, prepare, put_out):
        _add(step, workflow, made, resources)
    return workflow


def _add(
    step: Step,
    workflow: pe.Workflow,
    made: dict[str, tuple[pe.Node, str]],
    resources: Resources,
) -> None:
    """Add a step, connected to whatever earlier steps made that its class has an input for.

    Parameters
    ----------
    step
        Its inputs that are outputs of earlier steps have their names; what every step
        puts out is named ``STEP_record`` and so on.
    workflow
        The scan's.
    made
        Node and output by name; those of the step are added.
    resources
        Threads, and whether time is given for disk space.
    """
    threads = min(resources.omp_nthreads or 1, resources.nprocs)
    step.inputs.compress = not resources.low_mem
    node = pe.Node(step, step.name, n_procs=threads if step.threaded else 1, mem_gb=step.memory_gb)
    if step.helped:
        node.inputs.num_threads = threads
    workflow.add_nodes([node])
    for name in step.inputs.copyable_trait_names():
        if name in made:
            workflow.connect(*made[name], node, name)
    for output in step.output_spec().copyable_trait_names():
        common = output in StepOutputSpec().copyable_trait_names()
        made[f"{step.name}_{output}" if common else output] = (node, output)


def _preprocessing(
    belongings: Belongings, template: "Template", networks: Networks, processing: Processing
) -> Iterator[Step]:
    """Make the steps before the network: brain mask, bias field, registrations, regions."""
    lesions, mask = belongings.known_lesions, belongings.brain_mask
    yield Conform(
        in_file=belongings.scan.path,
        sidecars=list(belongings.sidecars),
        lesion_file=lesions.path if lesions else Undefined,
        lesion_note=lesions.note if lesions else "",
    )
    yield BrainMask(
        skull_strip=processing.skull_strip,
        network=networks.brain.card.sha256,
        mask_file=mask.path if mask else Undefined,
    )
    yield BiasField()
    yield Registration(
        template=template.name,
        template_t1w=template.t1w,
        template_wm_probseg=template.wm_probseg,
        template_brain_mask=template.brain_mask,
        method="sloppy" if processing.sloppy else processing.registration,
        seed=processing.random_seed,
    )
    if t1w := belongings.t1w:
        yield T1w(in_file=t1w.path, note=t1w.note, seed=processing.random_seed)
    yield Regions(rule=processing.periventricular_rule)


def _segmentation(
    networks: Networks, processing: Processing, resources: Resources
) -> Iterator[Step]:
    """Make the network and what is measured on its result."""
    yield Segmentation(
        weights=[one.path for one in networks.lesions],
        cards=[one.path.with_suffix(".json") for one in networks.lesions],
        tta=processing.tta,
        device=resources.device,
        batch_size=resources.batch_size,
        use_gpu=resources.device.startswith("cuda"),
    )
    yield Measure(
        threshold=processing.threshold,
        min_lesion_size_mm3=processing.min_lesion_size_mm3,
        rule=processing.periventricular_rule,
        infarct=processing.infarct,
    )
