"""The whole workflow on tiny images, slow steps replaced: outputs, running again, failures."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import save
from workflow_fakes import (
    Listener,
    head,
    install,
    install_in_workers,
    make_config,
    make_dataset,
    make_template,
    process_scans,
    scans_of,
    write_flair,
)

from bagau_bids.config import Processing
from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.network.cards import find_networks
from bagau_bids.workflow.flair import STEPS, init_flair_wf, scan_steps

TEMPLATE = "MNI152NLin2009cSym"
GOLDEN = """
{S}_desc-preproc_FLAIR.json
{S}_desc-preproc_FLAIR.nii.gz
{S}_desc-processing_record.json
{S}_desc-quality_stat.json
{S}_desc-quality_stat.tsv
{S}_from-FLAIR_to-MNI152NLin2009cSym_mode-image_xfm.h5
{S}_from-FLAIR_to-MNI152NLin2009cSym_mode-image_xfm.json
{S}_from-MNI152NLin2009cSym_to-FLAIR_mode-image_xfm.h5
{S}_from-MNI152NLin2009cSym_to-FLAIR_mode-image_xfm.json
{S}_label-WMH_desc-fazekas_morph.json
{S}_label-WMH_desc-fazekas_morph.tsv
{S}_label-WMH_desc-volumes_morph.json
{S}_label-WMH_desc-volumes_morph.tsv
{S}_space-orig_atlas-MNI152NLin2009cSym_label-WM_probseg.json
{S}_space-orig_atlas-MNI152NLin2009cSym_label-WM_probseg.nii.gz
{S}_space-orig_label-WMH_mask.json
{S}_space-orig_label-WMH_mask.nii.gz
{S}_space-orig_label-WMH_probseg.json
{S}_space-orig_label-WMH_probseg.nii.gz
{S}_space-orig_label-brain_mask.json
{S}_space-orig_label-brain_mask.nii.gz
{S}_space-orig_label-ventricles_mask.json
{S}_space-orig_label-ventricles_mask.nii.gz
{S}_space-orig_seg-WMHlesions_dseg.json
{S}_space-orig_seg-WMHlesions_dseg.nii.gz
{S}_space-orig_seg-WMHlesions_dseg.tsv
{S}_space-orig_seg-WMHregions_dseg.json
{S}_space-orig_seg-WMHregions_dseg.nii.gz
{S}_space-orig_seg-WMHregions_dseg.tsv
{S}_space-orig_seg-brainregions_dseg.json
{S}_space-orig_seg-brainregions_dseg.nii.gz
{S}_space-orig_seg-brainregions_dseg.tsv
"""
GOLDEN_FIGURES = """
{S}_desc-MNI152NLin2009cSym_T1w.json
{S}_desc-MNI152NLin2009cSym_T1w.nii.gz
{S}_desc-conform_FLAIR.json
{S}_desc-conform_FLAIR.nii.gz
"""
GOLDEN_TEMPLATE = """
{S}_space-MNI152NLin2009cSym_res-1_desc-preproc_FLAIR.json
{S}_space-MNI152NLin2009cSym_res-1_desc-preproc_FLAIR.nii.gz
{S}_space-MNI152NLin2009cSym_res-1_label-WMH_mask.json
{S}_space-MNI152NLin2009cSym_res-1_label-WMH_mask.nii.gz
{S}_space-MNI152NLin2009cSym_res-1_label-WMH_probseg.json
{S}_space-MNI152NLin2009cSym_res-1_label-WMH_probseg.nii.gz
"""


@pytest.fixture
def calls(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path)


@pytest.fixture
def template(tmp_path):
    return make_template(tmp_path / "store")


@pytest.fixture
def go(tmp_path, calls, template):
    """Run a data set of the given FLAIRs, or again the one there is."""

    def run(*stems, **options):
        bids_dir = tmp_path / "data"
        if stems:
            make_dataset(bids_dir, *stems)
        config = make_config(bids_dir, tmp_path / "out", tmp_path / "work", **options)
        listener = Listener()
        return process_scans(config, scans_of(bids_dir), template, listener), listener

    return run


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def golden(text, stem):
    return sorted(text.format(S=stem).split())


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def test_outputs_are_the_golden_list(go, tmp_path):
    stem = "sub-02_ses-1_acq-3D_ce-gad_rec-a_run-1"
    results, listener = go("sub-01", stem)
    assert [result.ok for result in results] == [True, True]
    assert listener.done == ["sub-01", stem]
    out = tmp_path / "out"
    assert names_in(out / "sub-01" / "anat") == golden(GOLDEN, "sub-01")
    assert names_in(out / "sub-02" / "ses-1" / "anat") == golden(GOLDEN, stem)
    assert names_in(out / "sub-01" / "figures") == golden(GOLDEN_FIGURES, "sub-01")
    assert names_in(out / "sub-02" / "figures") == golden(GOLDEN_FIGURES, stem)
    assert names_in(out) == [
        ".bidsignore",
        "README.md",
        "atlas-MNI152NLin2009cSym_description.json",
        "dataset_description.json",
        "descriptions.tsv",
        "logs",
        "sub-01",
        "sub-02",
    ]
    assert names_in(out / "logs") == [".lock", "CITATION.bib", "CITATION.md"]


@pytest.mark.slow
def test_validator_has_nothing_to_say_of_what_is_ours(go, tmp_path):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed beside this Python")
    go("sub-01")
    said = subprocess.run(
        [validator, tmp_path / "out", "--format", "json"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    codes = {issue["code"] for issue in json.loads(said.stdout)["issues"]["issues"]}
    # The tiny FLAIRs state no unit of length, and results keep their header.
    assert codes <= {"NIFTI_UNIT", "SIDECAR_KEY_RECOMMENDED"}


def test_template_space_adds_copies_and_nothing_else(go, tmp_path, template):
    go("sub-01", output_spaces=("orig", TEMPLATE))
    folder = tmp_path / "out" / "sub-01" / "anat"
    assert names_in(folder) == golden(GOLDEN + GOLDEN_TEMPLATE, "sub-01")
    mask = nib.load(folder / "sub-01_space-MNI152NLin2009cSym_res-1_label-WMH_mask.nii.gz")
    grid = nib.load(template.t1w)
    assert mask.shape == grid.shape
    np.testing.assert_allclose(mask.affine, grid.affine, atol=1e-5)
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (4, 4)


def test_outputs_lie_on_the_source_grid_bit_for_bit(go, tmp_path):
    bids_dir = make_dataset(tmp_path / "data")
    tilted = np.array(
        [[0, 0, 13.9, -60], [-8, 0.3, 0, 70], [0.3, 8, 0.2, -90], [0, 0, 0, 1]], dtype=float
    )
    source = nib.load(write_flair(bids_dir, "sub-01", affine=tilted))
    go()
    folder = tmp_path / "out" / "sub-01" / "anat"
    lesion = head() > 150
    looked_at = list((tmp_path / "out" / "sub-01" / "figures").glob("*.nii.gz"))
    assert [nib.load(path).get_data_dtype() for path in looked_at] == [np.uint8, np.uint8]
    for path in (*folder.glob("*.nii.gz"), *looked_at):
        image = nib.load(path)
        assert image.shape == source.shape
        assert image.affine.tobytes() == source.affine.tobytes()
    mask = nib.load(folder / "sub-01_space-orig_label-WMH_mask.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(mask.dataobj) > 0, lesion)


def test_sidecars_say_where_each_file_comes_from(go, tmp_path):
    go("sub-01", threshold=0.4, min_lesion_size_mm3=7.0)
    folder = tmp_path / "out" / "sub-01" / "anat"
    mask = json.loads((folder / "sub-01_space-orig_label-WMH_mask.json").read_text())
    assert mask["Type"] == "Lesion"
    assert mask["Manual"] is False
    assert (mask["Threshold"], mask["MinimumLesionVolume"]) == (0.4, 7.0)
    assert mask["SpatialReference"] == "bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz"
    assert mask["Sources"] == ["bids::sub-01/anat/sub-01_space-orig_label-WMH_probseg.nii.gz"]
    probseg = json.loads((folder / "sub-01_space-orig_label-WMH_probseg.json").read_text())
    assert probseg["Models"] == [
        {
            "Name": "small",
            "Architecture": "bagau_net",
            "Version": "1",
            "SHA256": hashlib.sha256(save({})).hexdigest(),
            "Outputs": ["wmh"],
            "ThresholdBeforeCalibration": 0.5,
        }
    ]
    assert probseg["Device"] == "cpu"
    assert (probseg["SlicesAtOnce"], probseg["Threads"], probseg["Seed"]) == (8, 1, 0)
    assert "the same bytes" in probseg["Reproducibility"]
    flair = json.loads((folder / "sub-01_desc-preproc_FLAIR.json").read_text())
    assert flair["SkullStripped"] is False
    links = json.loads((tmp_path / "out" / "dataset_description.json").read_text())["DatasetLinks"]
    for path in folder.glob("*.json"):
        if any(part in path.name for part in ("_record", "_morph", "_stat")):
            continue
        for uri in json.loads(path.read_text())["Sources"]:
            _, dataset, relative = uri.split(":", 2)
            if dataset == "":
                assert (tmp_path / "out" / relative).is_file(), uri
            else:
                assert dataset in links, uri


def test_record_keeps_notes_options_and_quality(go, tmp_path):
    go("sub-01", random_seed=3)
    path = tmp_path / "out" / "sub-01" / "anat" / "sub-01_desc-processing_record.json"
    record = json.loads(path.read_text())
    assert record["status"] == "complete"
    assert record["source"] == "bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz"
    assert record["options"]["random_seed"] == 3
    assert record["steps"]["brain_mask"]["notes"] == ["a note of the brain mask, -63.0 mm"]
    assert record["steps"]["registration"]["overlap"] == 0.95
    assert record["steps"]["measure"]["quality"]["brain_volume_ml"] > 100
    assert record["versions"]["bagau-bids"]
    assert all((tmp_path / "out" / name).is_file() for name in record["outputs"])


def test_areas_at_the_cortex_raise_a_flag_with_their_place(go, tmp_path, monkeypatch):
    from bagau_bids.measures import suspects

    def found(flair, anatomy):
        assert flair.data.shape == anatomy.brain_mask.shape == anatomy.groups.shape
        where = {"centre_mm": (1.0, 2, 3), "template_mm": (31.0, 2, 3), "box": ((1, 3),) * 3}
        return (suspects.Suspect("bright", 7.5, place="right, cortex", **where),)

    monkeypatch.setattr(suspects, "find_suspects", found)
    go("sub-01")
    path = tmp_path / "out" / "sub-01" / "anat" / "sub-01_desc-processing_record.json"
    steps = json.loads(path.read_text())["steps"]
    assert steps["regions"]["suspects"][0]["template_mm"] == [31.0, 2, 3]
    figures = steps["measure"]["quality"]
    assert (figures["largest_bright_ml"], figures["largest_dark_ml"]) == (7.5, 0)
    (flag,) = [one for one in steps["measure"]["flags"] if one["name"] == "infarct"]
    assert flag["words"].endswith("right, cortex, its centre at 31, 2, 3 mm in the template")


def test_lesions_and_volumes_agree(go, tmp_path):
    import pandas as pd

    go("sub-01")
    folder = tmp_path / "out" / "sub-01" / "anat"
    volumes = pd.read_csv(folder / "sub-01_label-WMH_desc-volumes_morph.tsv", sep="\t")
    lesions = pd.read_csv(folder / "sub-01_space-orig_seg-WMHlesions_dseg.tsv", sep="\t")
    labels = np.asarray(nib.load(folder / "sub-01_space-orig_seg-WMHlesions_dseg.nii.gz").dataobj)
    expected = (head() > 150).sum() * 8 * 8 * 14
    assert volumes.volume_mm3[0] == expected == lesions.volume_mm3.sum()
    assert set(np.unique(labels)) == {0, *lesions["index"]}
    sidecar = folder / "sub-01_space-orig_seg-WMHlesions_dseg.json"
    assert set(lesions.columns) <= set(json.loads(sidecar.read_text()))


def test_regions_add_up_to_the_mask(go, tmp_path):
    import pandas as pd

    go("sub-01", periventricular_rule="3mm")
    folder = tmp_path / "out" / "sub-01" / "anat"
    table = pd.read_csv(folder / "sub-01_label-WMH_desc-volumes_morph.tsv", sep="\t")
    lookup = pd.read_csv(folder / "sub-01_space-orig_seg-WMHregions_dseg.tsv", sep="\t")
    image = nib.load(folder / "sub-01_space-orig_seg-WMHregions_dseg.nii.gz")
    numbers = np.asarray(image.dataobj)
    np.testing.assert_array_equal(numbers > 0, head() > 150)
    rows = table.set_index("region")
    for _, entry in lookup.iterrows():
        assert rows.volume_voxels[entry["name"]] == (numbers == entry["index"]).sum()
    assert lookup["name"].str.contains("juxtaventricular").sum() == 2
    sidecar = json.loads((folder / "sub-01_space-orig_seg-WMHregions_dseg.json").read_text())
    assert set(lookup.columns) <= set(sidecar)
    assert sidecar["PeriventricularRule"] == "3mm"
    assert "10.1016/j.biopsych.2008.03.024" in sidecar["PeriventricularRuleDescription"]
    grades = pd.read_csv(folder / "sub-01_label-WMH_desc-fazekas_morph.tsv", sep="\t")
    assert grades.fazekas_estimate.between(0, 3).all()


def test_the_map_of_the_brain_has_the_regions_of_the_wmh(go, tmp_path):
    import pandas as pd

    go("sub-01")
    stem = tmp_path / "out" / "sub-01" / "anat" / "sub-01_space-orig"

    def load(name):
        return np.asarray(nib.load(f"{stem}_{name}.nii.gz").dataobj)

    brain, ventricles = load("label-brain_mask") > 0, load("label-ventricles_mask") > 0
    numbers, wmh = load("seg-brainregions_dseg"), load("seg-WMHregions_dseg")
    np.testing.assert_array_equal(numbers > 0, brain)
    same = (wmh > 0) & ~ventricles
    assert same.any()
    np.testing.assert_array_equal(numbers[same], wmh[same])
    names = pd.read_csv(f"{stem}_seg-brainregions_dseg.tsv", sep="\t").set_index("index")["name"]
    assert set(np.unique(numbers)) <= {0, *names.index}
    np.testing.assert_array_equal(
        numbers == names[names == "lateral-ventricles"].index[0], ventricles
    )
    sidecar = json.loads(Path(f"{stem}_seg-brainregions_dseg.json").read_text())
    assert {"index", "name", "PeriventricularRule"} <= set(sidecar)
    assert sidecar["Sources"][0] == "bids::sub-01/anat/sub-01_space-orig_label-brain_mask.nii.gz"


def test_a_scan_without_ventricles_has_no_regions_by_distance(go, tmp_path, monkeypatch):
    import pandas as pd

    from bagau_bids.measures import regions
    from bagau_bids.preprocessing import brain_map

    def nowhere(flair, *_):
        return regions.Ventricles(np.zeros(flair.data.shape, bool), "template", None, None, ())

    monkeypatch.setattr(brain_map, "find_ventricles", nowhere)
    go("sub-01")
    folder = tmp_path / "out" / "sub-01" / "anat"
    rows = pd.read_csv(folder / "sub-01_label-WMH_desc-volumes_morph.tsv", sep="\t")
    volume = rows.set_index("region").volume_mm3
    by_distance = ["periventricular", "deep", "juxtacortical", "left-deep"]
    assert volume[by_distance].isna().all()
    assert volume["left"] + volume["right"] == pytest.approx(volume["all"])
    image = nib.load(folder / "sub-01_space-orig_seg-WMHregions_dseg.nii.gz")
    numbers = np.asarray(image.dataobj)
    below = [regions.region_number("infratentorial", side) for side in regions.SIDES]
    whole = nib.load(folder / "sub-01_space-orig_seg-brainregions_dseg.nii.gz")
    for found in (numbers, np.asarray(whole.dataobj)):
        assert set(np.unique(found)) <= {0, *below}
    record = json.loads((folder / "sub-01_desc-processing_record.json").read_text())
    (note,) = record["steps"]["measure"]["notes"]
    assert note.startswith("The scan has no lateral ventricles")
    grades = pd.read_csv(folder / "sub-01_label-WMH_desc-fazekas_morph.tsv", sep="\t")
    assert grades[["fazekas_estimate", "measured_mm"]].isna().all(axis=None)


def test_no_lesion_is_a_result(go, tmp_path):
    write_flair(make_dataset(tmp_path / "data"), "sub-01", head(lesions=False))
    results, _ = go()
    assert results[0].ok
    folder = tmp_path / "out" / "sub-01" / "anat"
    assert not np.asarray(
        nib.load(folder / "sub-01_space-orig_label-WMH_mask.nii.gz").dataobj
    ).any()
    rows = (folder / "sub-01_label-WMH_desc-volumes_morph.tsv").read_text().splitlines()[1:]
    assert {tuple(row.split("\t")[1:4]) for row in rows} == {("0", "0", "0")}
    assert not np.asarray(
        nib.load(folder / "sub-01_space-orig_seg-WMHregions_dseg.nii.gz").dataobj
    ).any()
    grades = (folder / "sub-01_label-WMH_desc-fazekas_morph.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[1] for row in grades] == ["0", "0"]


def test_run_again_computes_and_writes_nothing(go, calls, tmp_path):
    go("sub-01")
    before, counts = stamps(tmp_path / "out"), dict(calls.counts)
    results, listener = go(run_uuid="20260101-000001_test")
    assert results[0].ok
    assert calls.counts == counts
    assert stamps(tmp_path / "out") == before
    assert set(listener.finished) == {
        ("sub-01", step) for step in scan_steps(Processing(), find_networks((), "small"))
    }


def test_threads_device_and_compression_do_not_make_it_run_again(go, calls):
    go("sub-01")
    counts = dict(calls.counts)
    go(batch_size=2, low_mem=True, omp_nthreads=4)
    assert calls.counts == counts


@pytest.mark.parametrize(
    ("asked", "scans", "threads"), [(None, 1, 6), (None, 2, 3), (None, 9, 1), (5, 2, 5)]
)
def test_steps_have_the_threads_that_their_number_of_scans_leaves(
    go, monkeypatch, asked, scans, threads
):
    seen = set()

    def build(**parts):
        seen.add(parts["resources"].omp_nthreads)
        return init_flair_wf(**parts)

    monkeypatch.setattr("bagau_bids.workflow.run.init_flair_wf", build)
    names = [f"sub-{number}" for number in range(scans)]
    go(*names, nprocs=6, omp_nthreads=asked, dry_run=True)
    assert seen == {threads}


def test_other_threshold_runs_only_what_follows_from_it(go, calls, tmp_path):
    go("sub-01")
    counts = dict(calls.counts)
    write = tmp_path / "out" / "sub-01" / "anat" / "sub-01_space-orig_label-WMH_mask.json"
    go(threshold=0.9)
    assert calls.counts == counts
    assert json.loads(write.read_text())["Threshold"] == 0.9


def test_other_card_of_the_weights_runs_the_segmentation_again_and_nothing_else(
    go, calls, tmp_path
):
    go("sub-01")
    counts = dict(calls.counts)
    card = tmp_path / "small.json"
    content = {**json.loads(card.read_text()), "calibration": {"threshold": 0.75}}
    card.write_text(json.dumps(content))
    go()
    changed = {name for name, count in calls.counts.items() if count != counts[name]}
    assert changed == {"segmentation"}


def test_changed_scan_is_computed_anew_under_the_same_name(go, calls, tmp_path):
    go("sub-01")
    write_flair(tmp_path / "data", "sub-01", head(5))
    go()
    assert calls.counts["segmentation"] == 2


def test_work_folder_may_be_moved(go, calls, tmp_path):
    go("sub-01")
    counts = dict(calls.counts)
    (tmp_path / "work").rename(tmp_path / "elsewhere")
    config = make_config(tmp_path / "data", tmp_path / "out2", tmp_path / "elsewhere")
    template_again = make_template(tmp_path / "store2")
    scans = scans_of(tmp_path / "data")
    assert process_scans(config, scans, template_again, Listener())[0].ok
    assert calls.counts == counts


def test_deleted_output_comes_back_without_computing(go, calls, tmp_path):
    go("sub-01")
    counts = dict(calls.counts)
    mask = tmp_path / "out" / "sub-01" / "anat" / "sub-01_space-orig_label-WMH_mask.nii.gz"
    content = mask.read_bytes()
    mask.unlink()
    go()
    assert mask.read_bytes() == content
    assert calls.counts == counts


def test_one_failure_leaves_the_others_complete(go, calls, tmp_path):
    bids_dir = make_dataset(tmp_path / "data", "sub-01", "sub-03")
    flat = np.full_like(head(), 7)
    write_flair(bids_dir, "sub-02", flat)
    results, listener = go()
    assert [result.ok for result in results] == [True, False, True]
    bad = results[1]
    assert "every voxel has the same value" in bad.reason
    assert "Traceback" not in bad.reason
    assert listener.failed == {"sub-02": bad.reason}
    assert bad.crash_file.parent == tmp_path / "out" / "sub-02" / "log" / "20260101-000000_test"
    assert "InputImageError" in bad.crash_file.read_text()
    record = tmp_path / "out" / "sub-02" / "anat" / "sub-02_desc-processing_record.json"
    failed = json.loads(record.read_text())
    assert failed["status"] == "failed"
    assert failed["failure"]["step"] == "conform"
    assert failed["failure"]["message"] == bad.reason
    assert names_in(tmp_path / "out" / "sub-03" / "anat") == golden(GOLDEN, "sub-03")


def test_scan_without_the_t1w_that_the_network_needs_fails_alone(go, calls, tmp_path):
    weights = tmp_path / "t1.safetensors"
    weights.write_bytes(b"weights")
    card = {"architecture": "unet", "config": {}, "sha256": "0", "inputs": ["flair", "t1"]}
    weights.with_suffix(".json").write_text(json.dumps(card))
    bids_dir = make_dataset(tmp_path / "data", "sub-01", "sub-02")
    write_flair(bids_dir, "sub-02").replace(bids_dir / "sub-02/anat/sub-02_T1w.nii.gz")
    write_flair(bids_dir, "sub-02")
    results, _ = go(weights=(weights,))
    assert [result.ok for result in results] == [False, True]
    assert "sub-01_FLAIR.nii.gz: no T1w beside this FLAIR" in results[0].reason
    assert calls.counts["t1w"] == calls.counts["segmentation"] == 1
    assert "t1" in calls.data["segmentation"].channels
    record = tmp_path / "out" / "sub-02" / "anat" / "sub-02_desc-processing_record.json"
    step = json.loads(record.read_text())["steps"]["t1w"]
    assert (step["file"], step["notes"]) == ("sub-02_T1w.nii.gz", ["a note of sub-02_T1w.nii.gz"])
    assert names_in(record.parent) == golden(GOLDEN, "sub-02")


def test_run_after_a_crash_continues_and_forgets_its_reason(go, calls, tmp_path):
    calls.fail_on["segmentation"] = (None, ProcessingError("the network stumbled"))
    results, _ = go("sub-01")
    assert results[0].reason == "the network stumbled"
    assert len(list((tmp_path / "work").rglob("failure.json"))) == 1
    counts = dict(calls.counts)
    del calls.fail_on["segmentation"]
    results, _ = go()
    assert results[0].ok
    assert not list((tmp_path / "work").rglob("failure.json"))
    assert calls.counts["segmentation"] == counts["segmentation"] + 1
    for step in ("brain_mask", "bias_field", "registration"):
        assert calls.counts[step] == counts[step]


def test_unexpected_error_names_the_step_and_the_crash_file(go, calls):
    calls.fail_on["bias_field"] = (None, ZeroDivisionError("by nought"))
    results, _ = go("sub-01")
    assert results[0].reason.startswith("step bias_field failed unexpectedly: ZeroDivisionError")
    assert str(results[0].crash_file) in results[0].reason


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 GB")]
)
def test_lack_of_memory_is_called_so(go, calls, error):
    calls.fail_on["segmentation"] = (None, error)
    results, _ = go("sub-01")
    assert results[0].reason.startswith("ran out of memory")
    assert "--mem-gb" in results[0].reason


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_and_is_no_failure_of_a_scan(go, monkeypatch, stop):
    from bagau_bids.preprocessing import bias_field

    def asked_to_end(number, frame):
        raise KeyboardInterrupt(number)

    monkeypatch.setattr(bias_field, "correct_bias_field", lambda *args: signal.raise_signal(stop))
    before = signal.signal(stop, asked_to_end)
    try:
        with pytest.raises(KeyboardInterrupt):
            go("sub-01", "sub-02")
        assert signal.getsignal(stop) is asked_to_end
    finally:
        signal.signal(stop, before)


def test_stop_on_first_crash_names_what_was_not_processed(go, calls):
    calls.fail_on["bias_field"] = (None, ProcessingError("no"))
    results, _ = go("sub-01", "sub-02", stop_on_first_crash=True)
    assert [result.ok for result in results] == [False, False]
    assert results[0].reason == "no"
    assert "not processed" in results[1].reason


def test_dry_run_builds_and_runs_nothing(go, calls, tmp_path):
    results, listener = go("sub-01", dry_run=True)
    assert results == []
    assert not calls.counts
    assert not listener.started
    assert not (tmp_path / "out" / "sub-01").exists()


def test_graph_is_written_beside_the_log(go, tmp_path):
    go("sub-01", dry_run=True, write_graph=True)
    graphs = list((tmp_path / "out" / "logs" / "20260101-000000_test").glob("graph*"))
    assert graphs


def test_rm_work_on_success_keeps_the_work_of_failures(go, tmp_path):
    bids_dir = make_dataset(tmp_path / "data", "sub-01")
    write_flair(bids_dir, "sub-02", np.zeros_like(head()))
    go(rm_work_on_success=True)
    folders = [path.name for path in next((tmp_path / "work").iterdir()).iterdir()]
    assert folders == ["sub_02_wf"]


def test_work_of_a_scan_is_removed_before_another_is_begun(go, calls, tmp_path):
    there = []

    def look(data):
        (top,) = (tmp_path / "work").iterdir()
        there.append([path.name for path in top.glob("sub_*_wf")])
        return False

    calls.fail_on["registration"] = (look, KeyError())
    go("sub-01", "sub-02", rm_work_on_success=True)
    assert there == [["sub_01_wf"], ["sub_02_wf"]]


def test_clean_workdir_computes_anew(go, calls):
    go("sub-01")
    go(clean_workdir=True)
    assert calls.counts["registration"] == 2


def test_work_folder_in_use_is_refused(go, tmp_path):
    import fcntl

    go("sub-01")
    lock = next((tmp_path / "work").glob("*/sub_01_wf/.lock"))
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        results, _ = go()
    assert not results[0].ok
    assert "another run works on this scan" in results[0].reason


def test_skip_takes_non_zero_voxels_for_the_brain(go, calls, tmp_path):
    stripped = np.where(head() > 50, head(), 0)
    write_flair(make_dataset(tmp_path / "data"), "sub-01", stripped)
    go(skull_strip="skip")
    folder = tmp_path / "out" / "sub-01" / "anat"
    mask = np.asarray(nib.load(folder / "sub-01_space-orig_label-brain_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask > 0, stripped != 0)
    assert calls.counts["brain_mask"] == 0
    sidecar = json.loads((folder / "sub-01_desc-preproc_FLAIR.json").read_text())
    assert sidecar["SkullStripped"] is True


def derivative_mask(tmp_path, affine_of, shape=None, name="sub-01_space-orig_label-brain_mask"):
    folder = tmp_path / "masks" / "sub-01" / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    source = nib.load(affine_of)
    data = np.zeros(shape or source.shape, np.uint8)
    data[5:-5, 5:-5, 3:-3] = 1
    path = folder / f"{name}.nii.gz"
    nib.Nifti1Image(data, source.affine).to_filename(path)
    return path


def test_brain_mask_of_derivatives_is_used(go, calls, tmp_path):
    flair = write_flair(make_dataset(tmp_path / "data"), "sub-01")
    path = derivative_mask(tmp_path, flair)
    results, _ = go(derivatives=(tmp_path / "masks",))
    assert results[0].ok
    assert calls.counts["brain_mask"] == 0
    out = tmp_path / "out" / "sub-01" / "anat" / "sub-01_space-orig_label-brain_mask.nii.gz"
    np.testing.assert_array_equal(nib.load(out).dataobj, nib.load(path).dataobj)
    sidecar = json.loads(out.with_name(out.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Sources"] == [f"bids:masks:sub-01/anat/{path.name}"]
    links = json.loads((tmp_path / "out" / "dataset_description.json").read_text())["DatasetLinks"]
    assert links["masks"] == (tmp_path / "masks").as_uri()


def test_brain_mask_on_another_grid_is_refused(go, tmp_path):
    flair = write_flair(make_dataset(tmp_path / "data"), "sub-01")
    derivative_mask(tmp_path, flair, shape=(30, 30, 30))
    results, _ = go(derivatives=(tmp_path / "masks",))
    assert "the brain mask lies on another grid" in results[0].reason


def test_two_brain_masks_are_refused_before_anything_runs(go, calls, tmp_path):
    flair = write_flair(make_dataset(tmp_path / "data"), "sub-01")
    derivative_mask(tmp_path, flair)
    derivative_mask(tmp_path, flair, name="sub-01_desc-brain_mask")
    results, _ = go(derivatives=(tmp_path / "masks",))
    assert "several brain masks" in results[0].reason
    assert not calls.counts


def test_foreign_output_folder_is_refused(go, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "x"}]}')
    with pytest.raises(UsageError, match="made by x"):
        go("sub-01")


def test_validator_accepts_the_derivatives(go, tmp_path):
    results, _ = go("sub-01", "sub-02_ses-1", output_spaces=("orig", TEMPLATE))
    assert all(result.ok for result in results)
    write_flair(tmp_path / "data", "sub-03", np.zeros_like(head()))
    go()
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed beside this Python")
    found = subprocess.run(
        [validator, "--ignoreWarnings", tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


def test_steps_are_at_most_ten():
    processing = make_config(None, None, None, output_spaces=("orig", TEMPLATE)).processing
    steps = scan_steps(processing, find_networks((), "small"))
    assert len(steps) <= 10  # one more where a network reads the T1w
    assert {*steps, "t1w"} == {step.name for step in STEPS}


def test_resource_monitor_leaves_its_measurements_beside_the_log(go, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nipype's monitor writes where it was started
    go("sub-01", resource_monitor=True)
    log_dir = tmp_path / "out" / "logs" / "20260101-000000_test"
    measured = json.loads((log_dir / "resource_monitor.json").read_text())
    assert {name.split(".")[-1] for name in measured["name"]} >= {"conform", "measure"}
    assert max(measured["rss_GiB"]) > 0


def test_nipype_is_left_as_it_was(go, tmp_path, monkeypatch):
    from nipype import config

    monkeypatch.chdir(tmp_path)
    before = {name: dict(section) for name, section in config._sections.items()}
    go("sub-01", resource_monitor=True, stop_on_first_crash=True)
    assert {name: dict(section) for name, section in config._sections.items()} == before
    assert config.resource_monitor is False


@pytest.mark.slow
def test_parallel_workers_may_fail_and_be_killed(go, monkeypatch, tmp_path):
    install_in_workers(monkeypatch)
    bids_dir = make_dataset(tmp_path / "data", "sub-01", "sub-04")
    write_flair(bids_dir, "sub-02", np.zeros_like(head()))
    write_flair(bids_dir, "sub-03", head(lesions=False))
    results, listener = go(nprocs=2)
    assert [result.ok for result in results] == [True, False, False, True]
    assert "every voxel is zero" in results[1].reason
    assert "lack of memory" in results[2].reason
    assert "sub-03_FLAIR.nii.gz" in results[2].reason
    assert sorted(listener.done) == ["sub-01", "sub-04"]
    for stem in listener.done:
        assert names_in(tmp_path / "out" / stem / "anat") == golden(GOLDEN, stem)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Linear", "MultiProc", "LegacyMultiProc"])
def test_plugin_file_changes_nothing_but_how_it_runs(go, monkeypatch, tmp_path, name):
    go("sub-01")
    masks = Path("sub-01/anat/sub-01_space-orig_label-WMH_mask.nii.gz")
    expected = (tmp_path / "out" / masks).read_bytes()
    (tmp_path / "out").rename(tmp_path / "reference")
    (tmp_path / "work").rename(tmp_path / "reference-work")
    write_flair(tmp_path / "data", "sub-02", np.zeros_like(head()))
    install_in_workers(monkeypatch)
    plugin = tmp_path / "plugin.yml"
    plugin.write_text(f"plugin: {name}\n")
    good, bad = go(plugin_file=plugin, nprocs=2)[0]
    assert good.ok
    assert (tmp_path / "out" / masks).read_bytes() == expected
    assert "sub-02_FLAIR.nii.gz: every voxel is zero" in bad.reason
    assert bad.crash_file.is_file()
