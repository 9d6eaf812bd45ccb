"""A tiny data set, and stand-ins for the slow steps, to run the real workflow in seconds."""

import hashlib
import json
import os
import signal
from collections import Counter
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
import pytest
import stand_ins
from safetensors.numpy import save

from bagau_bids.bids.scans import Scan, find_scans
from bagau_bids.config import Config, Execution, Processing, Resources, Selection
from bagau_bids.network.cards import find_networks
from bagau_bids.preprocessing.template import Template
from bagau_bids.workflow import preprocessing, segmentation
from bagau_bids.workflow.run import run_participants
from bagau_bids.workflow.step import load_image

SHAPE = (20, 24, 10)
AFFINE = np.array(
    [[-8.0, 0, 0, 76], [0, 8.0, 0, -92], [0, 0, 14.0, -63], [0, 0, 0, 1]], dtype=float
)


def head(seed=0, lesions=True):
    """FLAIR with a brain of 100, on air of 0 with noise; two bright lesions of 200."""
    rng = np.random.default_rng(seed)
    data = rng.uniform(0, 5, SHAPE).astype(np.float32)
    data[3:-3, 3:-3, 2:-2] += 100
    if lesions:
        data[6:8, 8:11, 4] = 200
        data[12, 15, 5] = 200
    return data


def write_flair(bids_dir, stem, data=None, affine=AFFINE):
    """Put a FLAIR into a data set; its folder follows from the stem."""
    session = [part for part in stem.split("_") if part.startswith("ses-")]
    folder = bids_dir.joinpath(stem.split("_")[0], *session, "anat")
    folder.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(head() if data is None else data, affine)
    image.set_qform(affine, 1)
    image.to_filename(folder / f"{stem}_FLAIR.nii.gz")
    return folder / f"{stem}_FLAIR.nii.gz"


def make_dataset(bids_dir, *stems):
    """Write a data set with these FLAIRs."""
    bids_dir.mkdir(parents=True, exist_ok=True)
    description = {"Name": "tiny", "BIDSVersion": "1.10.0", "DatasetDOI": "doi:10.0/tiny"}
    (bids_dir / "dataset_description.json").write_text(json.dumps(description))
    for number, stem in enumerate(stems):
        write_flair(bids_dir, stem, head(number))
    return bids_dir


def make_template(folder):
    """Write a template of the same grid as the tiny FLAIRs."""
    folder = folder / "tpl-MNI152NLin2009cSym"
    folder.mkdir(parents=True)
    brain = head(lesions=False) > 50
    paths = {}
    for part, data in (("t1w", head(9)), ("wm_probseg", brain * 0.8), ("brain_mask", brain)):
        paths[part] = folder / f"tpl-MNI152NLin2009cSym_res-1_{part}.nii.gz"
        nib.Nifti1Image(data.astype(np.float32), AFFINE).to_filename(paths[part])
    return Template("MNI152NLin2009cSym", **paths)


def make_config(bids_dir, output_dir, work_dir, **options):
    """Configure a run; options go where their names belong."""

    def section(kind, **defaults):
        names = kind.__dataclass_fields__.keys() & options.keys()
        return kind(**{**defaults, **{name: options[name] for name in names}})

    return Config(
        bids_dir=bids_dir,
        output_dir=output_dir,
        analysis_levels=("participant",),
        run_uuid=options.get("run_uuid", "20260101-000000_test"),
        selection=section(Selection),
        processing=section(Processing),
        resources=section(Resources, nprocs=1, device="cpu"),
        execution=section(Execution, work_dir=work_dir),
    )


@dataclass
class Listener:
    """A progress that remembers what it was told."""

    started: Counter = field(default_factory=Counter)
    finished: dict = field(default_factory=dict)
    done: list = field(default_factory=list)
    failed: dict = field(default_factory=dict)

    def step_started(self, scan, step):
        self.started[scan, step] += 1

    def step_finished(self, scan, step, seconds):
        self.finished[scan, step] = seconds

    def scan_finished(self, scan):
        self.done.append(scan)

    def scan_failed(self, scan, reason):
        self.failed[scan] = reason


@dataclass
class Calls:
    """How often each stand-in ran."""

    counts: Counter = field(default_factory=Counter)
    data: dict = field(default_factory=dict)  # what each was given last
    fail_on: dict = field(default_factory=dict)  # name -> error to raise once the condition holds

    def note(self, name, data=None):
        self.counts[name] += 1
        self.data[name] = data
        condition, error = self.fail_on.get(name, (None, None))
        if error is not None and (condition is None or condition(data)):
            raise error


def _fake_steps(calls):
    def brain_mask(flair):
        calls.note("brain_mask", flair.data)
        return stand_ins.brain_mask(flair)

    def correct_bias_field(flair, mask):
        calls.note("bias_field", flair.data)
        return stand_ins.correct_bias_field(flair, mask)

    def register_template(flair, *others, **options):
        calls.note("registration", flair.data)
        calls.note("known lesions out of the registration", options["excluded"])
        return stand_ins.register_template(flair, *others, **options)

    def t1w_on_flair(path, flair, *others, **options):
        calls.note("t1w", flair.data)
        return stand_ins.t1w_on_flair(path, flair, *others, **options)

    def segment(networks, inputs, brain_mask, **options):
        calls.note("segmentation", inputs)
        return stand_ins.segment(networks, inputs, brain_mask, **options)

    return {
        "preprocessing.brain_mask.brain_mask": brain_mask,
        "preprocessing.bias_field.correct_bias_field": correct_bias_field,
        "preprocessing.registration.register_template": register_template,
        "preprocessing.t1w.t1w_on_flair": t1w_on_flair,
        "network.inference.segment": segment,
        "network.inference.load_for_inference": stand_ins.load_weights,
    }


def install(monkeypatch, tmp_path):
    """Replace the slow steps by quick ones that count their calls."""
    calls = Calls()
    for name, function in _fake_steps(calls).items():
        monkeypatch.setattr(f"bagau_bids.{name}", function)
    weights = tmp_path / "small.safetensors"
    weights.write_bytes(save({}))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    card = {"architecture": "x", "config": {}, "sha256": digest}
    weights.with_suffix(".json").write_text(json.dumps(card))
    monkeypatch.setattr("bagau_bids.network.cards.find_weights", lambda name: weights)
    return calls


def install_everything(monkeypatch, store):
    """Replace the slow steps, and have the tiny template found wherever one is looked for."""
    template = make_template(store)
    install(monkeypatch, store)
    monkeypatch.setattr(
        "bagau_bids.preprocessing.template.find_template", lambda *place, **options: template
    )
    return template


def install_quick_page(monkeypatch):
    """Have pages written without their pictures, which take seconds."""

    def write_page(output_dir, label, **options):
        page = output_dir / f"sub-{label}.html"
        page.write_text(f"{label} {options}")
        return (page,)

    monkeypatch.setattr("bagau_bids.reports.participant.write_participant_report", write_page)


def scans_of(bids_dir) -> list[Scan]:
    """All FLAIRs of a data set."""
    return find_scans(bids_dir, Selection())


def process_scans(config, scans, template, listener):
    """Process scans with the weights that the configuration asks for."""
    networks = find_networks(config.processing.weights, config.processing.model)
    return run_participants(config, scans, template, networks, listener)


class _Faked:
    """Mixed into a step: it puts the stand-ins into the worker process that runs it."""

    def _process(self, folder):
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name, function in _fake_steps(Calls()).items():
                monkeypatch.setattr(f"bagau_bids.{name}", function)
            return super()._process(folder)


class FakedBrainMask(_Faked, preprocessing.BrainMask):
    """Brain mask by its stand-in."""


class FakedRegistration(_Faked, preprocessing.Registration):
    """Registration by its stand-in."""


class FakedSegmentation(_Faked, segmentation.Segmentation):
    """Segmentation by its stand-in."""


class DeadlyBiasField(_Faked, preprocessing.BiasField):
    """Bias field by its stand-in, whose worker is killed by a FLAIR without lesions."""

    def _process(self, folder):
        if load_image(self.inputs.flair).data.max() < 150:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._process(folder)


def install_in_workers(monkeypatch):
    """Build workflows of steps that bring their stand-ins along into worker processes."""
    for step in (FakedBrainMask, FakedRegistration, FakedSegmentation):
        name = step.__name__.removeprefix("Faked")
        monkeypatch.setattr(f"bagau_bids.workflow.flair.{name}", step)
    monkeypatch.setattr("bagau_bids.workflow.flair.BiasField", DeadlyBiasField)
