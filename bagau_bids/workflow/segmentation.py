"""The network and what is measured on its result, as nipype interfaces."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from nipype.interfaces.base import File, InputMultiObject, isdefined, traits
from numpy.typing import NDArray

from bagau_bids.config import PERIVENTRICULAR_RULES
from bagau_bids.files import write_table
from bagau_bids.workflow.step import (
    Step,
    StepOutputSpec,
    TissueInputSpec,
    known_lesions_of,
    load_image,
    load_on_grid,
    read_record,
    set_torch_threads,
    without,
)

if TYPE_CHECKING:
    from bagau_bids.measures.infarcts import Found
    from bagau_bids.measures.quality import Figures, Registered

NO_VENTRICLES = (
    "The scan has no lateral ventricles: regions that follow from the distance to them, and the "
    "Fazekas grades, are n/a."
)
KNOWN_OUTSIDE = (
    "The mask of known lesions lies outside the brain mask: it takes nothing from the WMH; look "
    "whether it belongs to this FLAIR."
)
NOTED_ML = 0.1
UNASKED = (
    "{:.2f} ml are an infarct to the network and not counted as WMH; --infarct puts them out as a "
    "mask, a probability and a volume."
)


class SegmentationInputSpec(TissueInputSpec):
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

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.network.inference import segment, segment_input
        from bagau_bids.network.slices import add_t1, network_input, require_white_matter
        from bagau_bids.network.weights import INFARCT, load_weights, operating_point, outputs_of

        set_torch_threads(self.inputs.num_threads)
        flair, affine = load_image(self.inputs.corrected)
        mask = load_on_grid(self.inputs.brain_mask, flair.shape, affine) > 0
        wm_probseg = load_on_grid(self.inputs.wm_probseg, flair.shape, affine)
        paths = [Path(path) for path in self.inputs.weights]
        models, cards = zip(*(load_weights(path) for path in paths), strict=True)
        running = {
            "device": self.inputs.device,
            "batch_size": self.inputs.batch_size,
            "tta": self.inputs.tta,
        }
        known = known_lesions_of(self.inputs, flair.shape, affine)
        if isdefined(self.inputs.t1w) or known is not None:
            inputs = network_input(flair, affine, mask, wm_probseg, known)
            require_white_matter(wm_probseg, mask)
            judged = without(mask, known)
            if isdefined(self.inputs.t1w):
                t1 = load_on_grid(self.inputs.t1w, flair.shape, affine)
                inputs = add_t1(inputs, t1, affine, judged)
            result = segment_input(models, inputs, judged, **running)
        else:
            result = segment(models, flair, affine, mask, wm_probseg, **running)
        self._save("probability", folder, result.probability, affine, np.float32)
        if result.infarct_probability is not None:
            infarct = result.infarct_probability
            self._save("infarct_probability", folder, infarct, affine, np.float32)
        return {
            "notes": result.notes,
            "device": result.device,
            "precision": result.precision,
            "batch_size": result.batch_size,
            "tta": self.inputs.tta,
            "models": [
                {
                    "Name": path.stem,
                    "Architecture": card["architecture"],
                    "Version": card.get("version"),
                    "SHA256": card["sha256"],
                    "Outputs": outputs_of(model),
                    "ThresholdBeforeCalibration": operating_point(model),
                    **(
                        {"InfarctThresholdBeforeCalibration": operating_point(model, INFARCT)}
                        if INFARCT in outputs_of(model)
                        else {}
                    ),
                }
                for path, card, model in zip(paths, cards, models, strict=True)
            ],
        }


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
    threshold = traits.Float(mandatory=True, desc="WMH from this probability on")
    min_lesion_size_mm3 = traits.Float(mandatory=True, desc="smaller lesions are dropped")


class MeasureOutputSpec(StepOutputSpec):
    """Outputs of `Measure`."""

    wmh_mask = File(exists=True, desc="uint8, conformed grid")
    infarct_mask = File(desc="uint8, conformed grid; only where wanted")
    lesions = File(exists=True, desc="lesions numbered from 1, int32, conformed grid")
    wmh_regions = File(exists=True, desc="region of each voxel of the mask, uint8, same grid")
    volumes_table = File(exists=True, desc="TSV")
    lesions_table = File(exists=True, desc="TSV")
    quality_table = File(exists=True, desc="TSV")
    regions_table = File(exists=True, desc="TSV, what the values of wmh_regions mean")
    fazekas_table = File(exists=True, desc="TSV")


class Measure(Step):
    """Turn the probability into a mask, its lesions, and tables about both."""

    input_spec = MeasureInputSpec
    output_spec = MeasureOutputSpec
    name = "measure"
    memory_gb = 1.2

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.measures import fazekas, flags, lesions, quality, suspects
        from bagau_bids.measures.regions import (
            distance_mm,
            infratentorial,
            lookup_table,
            ventricles_seen,
        )

        probability, affine = load_image(self.inputs.probability)
        shape = probability.shape
        flair = load_on_grid(self.inputs.corrected, shape, affine)
        brain = load_on_grid(self.inputs.brain_mask, shape, affine) > 0
        wm_probseg = load_on_grid(self.inputs.wm_probseg, shape, affine)
        regions = load_on_grid(self.inputs.regions, shape, affine).astype(np.uint8)
        ventricles = load_on_grid(self.inputs.ventricles, shape, affine) > 0
        known = known_lesions_of(self.inputs, shape, affine)
        found = self._found(probability, affine)
        mask = found.wmh
        # Neither infarcts nor known lesions are normal white matter, or WMH that one doubts.
        healthy_wm = np.where(without(~found.infarct, known), wm_probseg, 0)
        labels = lesions.label_lesions(mask)
        self._save("wmh_mask", folder, mask, affine, np.uint8)
        self._save("lesions", folder, labels, affine, np.int32)
        distance = distance_mm(ventricles, affine)
        seen = ventricles_seen(distance)
        told = infratentorial(regions) | seen
        self._save("wmh_regions", folder, np.where(mask & told, regions, 0), affine, np.uint8)
        points, lattice = load_image(self.inputs.template_points)
        anatomy = lesions.Anatomy(
            regions=regions,
            ventricle_distance_mm=distance,
            template_points=np.moveaxis(points, -1, 0),
            points_affine=lattice,
            white_matter=quality.white_matter_level(
                flair, quality.normal_white_matter(brain, healthy_wm, mask)
            ),
        )
        figures = quality.scan_quality(
            flair,
            affine,
            brain,
            healthy_wm,
            mask,
            np.where(found.infarct, 0, probability),
            self._registered(),
        )
        recorded = read_record(self.inputs.regions_record)["suspects"]
        areas = msgspec.convert(recorded, tuple[suspects.Suspect, ...])
        figures = replace(
            figures,
            **suspects.suspect_figures(areas),
            **self._plausibility(flair, affine, brain, wm_probseg, figures),
        )
        tables = {
            "volumes_table": lesions.volume_table(
                mask,
                affine,
                brain,
                regions,
                self.inputs.rule,
                ventricles=seen,
                others={"infarct": found.reported, "known_lesion": known},
            ),
            "lesions_table": lesions.lesion_table(
                labels, affine, probability, flair, brain, anatomy
            ),
            "regions_table": lookup_table(self.inputs.rule),
            "fazekas_table": fazekas.fazekas_table(mask, distance, regions, affine),
            "quality_table": flags.quality_table(figures),
        }
        for name, table in tables.items():
            path = folder / f"{name}.tsv"
            write_table(path, table)
            self._results[name] = str(path)
        places = suspects.places_in_words(areas)
        raised = [asdict(flag) for flag in flags.raised_flags(figures, places)]
        if found.reported is not None:
            self._save("infarct_mask", folder, found.reported, affine, np.uint8)
        infarct_ml = found.infarct_ml(affine)
        notes = [] if seen else [NO_VENTRICLES]
        if known is not None and known.any() and not (known & brain).any():
            notes.append(KNOWN_OUTSIDE)
        if infarct_ml is not None and infarct_ml >= NOTED_ML and not self.inputs.infarct:
            notes.append(UNASKED.format(infarct_ml))
        return {
            "notes": notes,
            "quality": asdict(figures),
            "flags": raised,
            "infarct_ml": infarct_ml,
        }

    def _found(self, probability: NDArray, affine: NDArray) -> "Found":
        """Tell WMH and infarcts apart; small pieces of either go."""
        from bagau_bids.measures.infarcts import find

        infarct = None
        if isdefined(self.inputs.infarct_probability):
            infarct = load_on_grid(self.inputs.infarct_probability, probability.shape, affine)
        return find(
            probability,
            infarct,
            affine,
            threshold=self.inputs.threshold,
            min_size_mm3=self.inputs.min_lesion_size_mm3,
            wanted=self.inputs.infarct,
        )

    def _plausibility(
        self,
        flair: NDArray,
        affine: NDArray,
        brain: NDArray,
        wm_probseg: NDArray,
        figures: "Figures",
    ) -> dict[str, float | None]:
        """Figures of whether the scan is what its name and header say."""
        from bagau_bids.measures import plausibility

        evidence = plausibility.Evidence(
            csf_to_wm=figures.csf_to_wm,
            entropy=figures.wmh_entropy,
            sidecar_signs=read_record(self.inputs.conform_record).get("sidecar_signs", ()),
        )
        t1w = load_on_grid(self.inputs.warped_t1w, flair.shape, affine)
        return {
            **plausibility.contrast_figures(flair, brain, wm_probseg, t1w, evidence),
            "clipped_share": read_record(self.inputs.brain_mask_record).get("clipped_share"),
            "head_turn": read_record(self.inputs.registration_record).get("head_turn"),
            "slice_tilt_degrees": plausibility.slice_tilt_degrees(affine),
        }

    def _registered(self) -> "Registered":
        """Gather what earlier steps recorded of the registration."""
        from bagau_bids.measures.quality import Registered

        registration = read_record(self.inputs.registration_record)
        regions = read_record(self.inputs.regions_record)
        return Registered(
            overlap=registration["overlap"],
            mutual_information=registration["mutual_information"],
            coverage=regions["fov_coverage"],
            csf=regions["csf"],
        )
