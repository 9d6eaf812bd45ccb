"""The network and what is measured on its result, as nipype interfaces."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import UNSET
from nipype.interfaces.base import File, InputMultiObject, isdefined, traits
from numpy.typing import NDArray

from bagau_bids.bids.records import (
    BrainMaskRecord,
    ConformRecord,
    MeasureRecord,
    Model,
    RegionsRecord,
    RegistrationRecord,
    SegmentationRecord,
)
from bagau_bids.config import PERIVENTRICULAR_RULES
from bagau_bids.network.cards import UNCALIBRATED
from bagau_bids.spaces import Image
from bagau_bids.workflow.preprocessing import RecipeInputSpec
from bagau_bids.workflow.step import (
    Step,
    StepOutputSpec,
    TissueInputSpec,
    load_on_grid,
    load_points,
    read_record,
    set_torch_threads,
    without,
)

if TYPE_CHECKING:
    from bagau_bids.measures.scan import Maps, Noticed
    from bagau_bids.network.weights import LoadedNetwork


class SegmentationInputSpec(RecipeInputSpec, TissueInputSpec):
    """Inputs of `Segmentation`."""

    corrected = File(exists=True, mandatory=True, desc="bias-corrected FLAIR, conformed grid")
    brain_mask = File(exists=True, mandatory=True)
    wm_probseg = File(exists=True, mandatory=True, desc="template's white matter on the FLAIR")
    t1w = File(exists=True, desc="T1w on the conformed grid, for networks that ask for it")
    weights = InputMultiObject(
        File(exists=True), mandatory=True, desc="safetensors files; their mean is taken"
    )
    cards = InputMultiObject(
        File(exists=True), desc="JSON cards of the weights; a changed one makes the step run again"
    )
    tta = traits.Bool(False, usedefault=True, desc="average with the mirrored FLAIR's result")
    device = traits.Str("auto", usedefault=True, nohash=True, desc="auto, cpu, cuda or cuda:N")
    batch_size = traits.Int(8, usedefault=True, nohash=True, desc="slices at once")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="takes nipype's GPU slot")


class SegmentationOutputSpec(StepOutputSpec):
    """Outputs of `Segmentation`."""

    probability = File(exists=True, desc="WMH probability, float32, 0 outside the brain")
    infarct_probability = File(desc="likewise of infarct; only where a network tells it")


class Segmentation(Step):
    """Run the network over a FLAIR and its white matter map."""

    input_spec = SegmentationInputSpec
    output_spec = SegmentationOutputSpec
    name = "segmentation"
    memory_gb = 2.5  # for the full-width network
    threaded = True

    def _process(self, folder: Path) -> SegmentationRecord:
        from bagau_bids.network.inference import load_for_inference, segment
        from bagau_bids.network.slices import add_t1, network_input, require_white_matter

        set_torch_threads(self.inputs.num_threads)
        flair, mask, known = self._load_scan(self.inputs.corrected)
        wm_probseg = load_on_grid(self.inputs.wm_probseg, flair)
        networks = [load_for_inference(Path(path)) for path in self.inputs.weights]
        inputs = network_input(flair, mask, wm_probseg, known)
        require_white_matter(wm_probseg, mask)
        judged = without(mask, known)
        if isdefined(self.inputs.t1w):
            t1w = Image(load_on_grid(self.inputs.t1w, flair), flair.affine)
            inputs = add_t1(inputs, t1w, judged)
        result = segment(
            networks,
            inputs,
            judged,
            device=self.inputs.device,
            batch_size=self.inputs.batch_size,
            tta=self.inputs.tta,
        )
        wmh = Image(result.probability, flair.affine)
        self._derive("wmh_probseg", folder, wmh, "probability")
        if result.infarct_probability is not None:
            infarct = Image(result.infarct_probability, flair.affine)
            self._save("infarct_probability", folder, infarct, np.float32)
        return SegmentationRecord(
            notes=result.notes,
            device=result.device,
            precision=result.precision,
            batch_size=result.batch_size,
            tta=self.inputs.tta,
            mirrored_dice=agreement(result.views),
            models=tuple(
                _told(Path(path), network)
                for path, network in zip(self.inputs.weights, networks, strict=True)
            ),
        )


def agreement(views: Sequence[NDArray[np.float32]]) -> float | None:
    """Dice of the masks of the FLAIR and of its mirror image; None without WMH, or without both.

    Parameters
    ----------
    views : sequence of (X, Y, Z) arrays
        Probability of WMH by each alone.
    """
    from bagau_bids.measures.metrics import dice

    masks = [view >= UNCALIBRATED for view in views]
    if not any(mask.any() for mask in masks):
        return None
    return dice(*masks)


def _told(path: Path, network: "LoadedNetwork") -> Model:
    """Say which network it was."""
    points = network.operating_points
    return Model(
        name=path.stem,
        architecture=network.card.architecture,
        version=network.card.version,
        sha256=network.card.sha256,
        outputs=network.outputs,
        threshold_before_calibration=points["wmh"],
        infarct_threshold_before_calibration=points.get("infarct", UNSET),
    )


class MeasureInputSpec(TissueInputSpec):
    """Inputs of `Measure`."""

    probability = File(exists=True, mandatory=True, desc="of WMH")
    infarct_probability = File(exists=True, desc="of infarct, where a network tells it")
    infarct = traits.Bool(False, usedefault=True, desc="infarcts are wanted as a result")
    corrected = File(exists=True, mandatory=True)
    brain_mask = File(exists=True, mandatory=True)
    wm_probseg = File(exists=True, mandatory=True)
    ventricles = File(exists=True, mandatory=True)
    regions = File(exists=True, mandatory=True)
    template_points = File(exists=True, mandatory=True, desc="as `Registration` puts it out")
    rule = traits.Enum(*PERIVENTRICULAR_RULES, mandatory=True, desc="that of the regions")
    warped_t1w = File(exists=True, mandatory=True, desc="template's T1w on the FLAIR")
    conform_record = File(exists=True, mandatory=True)
    brain_mask_record = File(exists=True, mandatory=True)
    registration_record = File(exists=True, mandatory=True)
    regions_record = File(exists=True, mandatory=True)
    segmentation_record = File(exists=True, mandatory=True)
    threshold = traits.Float(mandatory=True, desc="WMH from this probability on")
    min_lesion_size_mm3 = traits.Float(mandatory=True, desc="smaller lesions are dropped")


class MeasureOutputSpec(StepOutputSpec):
    """Outputs of `Measure`."""

    wmh_mask = File(exists=True, desc="uint8, conformed grid")


class Measure(Step):
    """Turn the probability into a mask, its lesions, and tables about both."""

    input_spec = MeasureInputSpec
    output_spec = MeasureOutputSpec
    name = "measure"
    memory_gb = 1.2

    def _process(self, folder: Path) -> MeasureRecord:
        from bagau_bids.measures.scan import measure_scan

        probability, mask, known = self._load_scan(self.inputs.probability)
        infarct = None
        if isdefined(self.inputs.infarct_probability):
            infarct = load_on_grid(self.inputs.infarct_probability, probability)
        measured = measure_scan(
            self._maps(probability, mask, known),
            probability.data,
            infarct,
            self._noticed(),
            threshold=self.inputs.threshold,
            min_size_mm3=self.inputs.min_lesion_size_mm3,
            rule=self.inputs.rule,
            infarct_wanted=self.inputs.infarct,
        )
        wmh, lesions, regions = (
            Image(one, probability.affine)
            for one in (measured.found.wmh, measured.lesions, measured.wmh_regions)
        )
        self._derive("wmh_mask", folder, wmh, "wmh_mask")
        self._derive("lesions_dseg", folder, lesions)
        self._derive("regions_dseg", folder, regions)
        if measured.found.reported is not None:
            reported = Image(measured.found.reported, probability.affine)
            self._derive("infarct_mask", folder, reported)
            self._results["derivatives"]["infarct_probseg"] = self.inputs.infarct_probability
        for name, table in measured.tables.items():
            self._tabulate(name, folder, table)
        return MeasureRecord(
            notes=measured.notes,
            quality=measured.figures,
            flags=measured.flags,
            infarct_ml=measured.infarct_ml,
        )

    def _maps(self, scan: Image, mask: NDArray, known: NDArray | None) -> "Maps":
        from bagau_bids.measures.scan import Maps

        return Maps(
            flair=Image(load_on_grid(self.inputs.corrected, scan), scan.affine),
            brain_mask=mask,
            ventricles=load_on_grid(self.inputs.ventricles, scan) > 0,
            wm_probseg=load_on_grid(self.inputs.wm_probseg, scan),
            template_t1w=load_on_grid(self.inputs.warped_t1w, scan),
            regions=load_on_grid(self.inputs.regions, scan).astype(np.uint8),
            known_lesions=known,
            template_points=load_points(self.inputs.template_points),
        )

    def _noticed(self) -> "Noticed":
        """Gather what earlier steps recorded."""
        from bagau_bids.measures.quality import Registered
        from bagau_bids.measures.scan import Noticed

        conform = read_record(self.inputs.conform_record, ConformRecord)
        brain_mask = read_record(self.inputs.brain_mask_record, BrainMaskRecord)
        registration = read_record(self.inputs.registration_record, RegistrationRecord)
        regions = read_record(self.inputs.regions_record, RegionsRecord)
        segmentation = read_record(self.inputs.segmentation_record, SegmentationRecord)
        return Noticed(
            registered=Registered(
                overlap=registration.overlap,
                mutual_information=registration.mutual_information,
                coverage=regions.fov_coverage,
                csf=regions.csf,
            ),
            suspects=regions.suspects,
            sidecar_signs=conform.sidecar_signs,
            clipped_share=brain_mask.clipped_share,
            head_turn=registration.head_turn,
            mirrored_dice=segmentation.mirrored_dice,
        )
