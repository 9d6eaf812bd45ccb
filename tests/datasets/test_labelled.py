"""Scans with masks: pairing, splitting, reading; the same tensors as inference."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from network_spy import Spy, loaded
from threadpoolctl import threadpool_limits

from bagau_bids.bids.scans import Scan
from bagau_bids.datasets import labelled as dataset
from bagau_bids.datasets.labelled import (
    LabelledScan,
    pair_masks,
    prepare_scan,
    read_reference,
    split_by_subject,
)
from bagau_bids.errors import InputImageError, ProcessingError, UsageError
from bagau_bids.network.cards import Card
from bagau_bids.network.inference import segment
from bagau_bids.network.slices import add_t1, network_input
from bagau_bids.preprocessing.template import Template
from bagau_bids.spaces import Image
from bagau_bids.synthesis.pool import training_shard


def scan(path, **entities):
    return Scan(Path(path), entities)


def touch(folder, *names):
    for name in names:
        path = folder / name.split("_")[0] / "anat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_mask_is_found_by_its_entities(tmp_path):
    touch(
        tmp_path,
        "sub-1_ses-a_space-orig_label-WMH_mask.nii.gz",
        "sub-1_ses-b_label-WMH_mask.nii.gz",
        "sub-1_ses-b_acq-3D_desc-x_label-WMH_mask.nii",
        "sub-1_ses-a_label-brain_mask.nii.gz",
        "sub-1_ses-a_label-WMH_probseg.nii.gz",
        "sub-11_ses-a_label-WMH_mask.nii.gz",
    )
    scans = [
        scan("a.nii", sub="1", ses="a"),
        scan("b.nii", sub="1", ses="b"),
        scan("c.nii", sub="1", ses="b", acq="3D"),
        scan("d.nii", sub="2"),
    ]
    labelled, notes = pair_masks(scans, tmp_path, dataset=3)
    assert [one.mask_path.name for one in labelled] == [
        "sub-1_ses-a_space-orig_label-WMH_mask.nii.gz",
        "sub-1_ses-b_label-WMH_mask.nii.gz",
        "sub-1_ses-b_acq-3D_desc-x_label-WMH_mask.nii",
    ]
    assert {one.dataset for one in labelled} == {3}
    assert len(notes) == 1
    assert "d.nii: no lesion mask" in notes[0]


def test_two_masks_for_one_scan_are_refused(tmp_path):
    touch(tmp_path, "sub-1_desc-a_label-WMH_mask.nii", "sub-1_desc-b_label-WMH_mask.nii")
    with pytest.raises(UsageError, match="2 lesion masks for a.nii .*expected one"):
        pair_masks([scan("a.nii", sub="1")], tmp_path)


@pytest.mark.parametrize("folder", [".", "missing"])
def test_no_mask_at_all_is_refused(tmp_path, folder):
    with pytest.raises(UsageError, match="no mask for any of 1 FLAIRs"):
        pair_masks([scan("a.nii", sub="1")], tmp_path / folder)


def many(subjects, sessions=2, dataset_number=0):
    return [
        LabelledScan(scan(f"{s}{n}", sub=s, ses=str(n)), Path(f"{s}{n}.nii"), dataset_number)
        for s in subjects
        for n in range(sessions)
    ]


def people(part):
    return {(one.dataset, one.scan.subject) for one in part}


def test_split_is_8_1_1_by_subject():
    scans = many([f"{n:02d}" for n in range(20)])
    split = split_by_subject(scans, seed=4)
    assert [len(people(p)) for p in (split.training, split.validation, split.test)] == [16, 2, 2]
    assert not people(split.training) & people(split.validation)
    assert not people(split.test) & (people(split.training) | people(split.validation))
    assert sorted((*split.training, *split.validation, *split.test), key=str) == sorted(
        scans, key=str
    )
    assert split == split_by_subject(scans, seed=4)
    assert split != split_by_subject(scans, seed=5)


def test_few_subjects_still_leave_one_to_validate_on():
    split = split_by_subject(many("abc"))
    assert [len(people(p)) for p in (split.training, split.validation, split.test)] == [2, 1, 0]


def test_named_subjects_are_held_out():
    split = split_by_subject(many("abcd"), validation=["b"], test=["d"])
    assert people(split.validation) == {(0, "b")}
    assert people(split.test) == {(0, "d")}
    assert people(split.training) == {(0, "a"), (0, "c")}


def test_same_label_in_two_data_sets_is_two_people():
    split = split_by_subject([*many("ab"), *many("ab", dataset_number=1)], seed=0)
    assert len(people(split.training)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": ["x"]}, "--validation/--test: x; expected"),
        ({"validation": ["a"], "test": ["a"]}, "a subject in both"),
        ({"validation": ["a", "b"]}, "leave 0 scans to train on"),
        ({"test": ["a"]}, "0 to validate on"),
    ],
)
def test_impossible_splits_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        split_by_subject(many("ab"), **options)


def save(path, data, affine):
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


def test_reference_follows_its_flair_into_ras_order(tmp_path, oriented_image):
    mask = (oriented_image.get_fdata() > 60).astype(np.uint8)
    flair = tmp_path / "flair.nii"
    oriented_image.to_filename(flair)
    reference = read_reference(save(tmp_path / "m.nii", mask, oriented_image.affine), flair)
    assert reference.dtype == np.uint8
    expected = nib.as_closest_canonical(oriented_image).get_fdata() > 60
    np.testing.assert_array_equal(reference == 1, expected)


def test_reference_on_another_grid_is_refused(tmp_path):
    flair = save(tmp_path / "f.nii", np.ones((5, 6, 7), np.float32), np.eye(4))
    for shape, affine in (((5, 6, 8), np.eye(4)), ((5, 6, 7), np.diag([1, 1, 2, 1]))):
        mask = save(tmp_path / "m.nii", np.zeros(shape, np.uint8), affine)
        with pytest.raises(InputImageError, match=r"m.nii: grid .*; expected that of .*f.nii"):
            read_reference(mask, flair)


def test_reference_with_other_labels_is_refused(tmp_path):
    flair = save(tmp_path / "f.nii", np.ones((5, 6, 7), np.float32), np.eye(4))
    mask = save(tmp_path / "m.nii", np.full((5, 6, 7), 255, np.uint8), np.eye(4))
    with pytest.raises(InputImageError, match=r"values \[255\]; expected 0 \(background\)"):
        read_reference(mask, flair)


@pytest.fixture
def quick_steps(monkeypatch):
    """Stand-ins for the slow steps before the network; counts how often they run."""
    calls = []

    def brain_mask(flair):
        calls.append("brain")
        mask = np.zeros(flair.data.shape, bool)
        mask[8:-8, 8:-8, 1:-1] = True
        return type("Found", (), {"mask": mask})

    def correct_bias_field(flair, mask):
        ramp = np.linspace(0.9, 1.1, flair.data.shape[0])[:, None, None]
        return Image((flair.data * ramp).astype(np.float32), flair.affine)

    def register_template(flair, mask, template, *, method):
        return type("Registered", (), {"wm_probseg": (mask * flair.data / 200).astype(np.float32)})

    base = "bagau_bids.preprocessing"
    monkeypatch.setattr(f"{base}.brain_mask.brain_mask", brain_mask)
    monkeypatch.setattr(f"{base}.bias_field.correct_bias_field", correct_bias_field)
    monkeypatch.setattr(f"{base}.registration.register_template", register_template)
    monkeypatch.setattr(dataset, "find_weights", lambda name: Path(name))
    monkeypatch.setattr(
        dataset, "read_card", lambda path: Card(architecture="x", config={}, sha256="0")
    )
    return calls, brain_mask, correct_bias_field, register_template


@pytest.fixture
def labelled(tmp_path):
    rng = np.random.default_rng(0)
    affine = np.diag([-2.5, 3, 6, 1.0])
    flair = save(
        tmp_path / "sub-1_FLAIR.nii", rng.uniform(50, 150, (60, 64, 8)).astype("f4"), affine
    )
    mask = np.zeros((60, 64, 8), np.uint8)
    mask[20:24, 30:33, 4] = 1
    save(tmp_path / "sub-1_label-WMH_mask.nii", mask, affine)
    return LabelledScan(scan(flair, sub="1"), tmp_path / "sub-1_label-WMH_mask.nii")


TEMPLATE = Template("T", Path("t1w"), Path("wm"), Path("mask"))


class SpyWithT1(Spy):
    def forward(self, flair, t1):
        return super().forward(flair, t1)


@pytest.fixture
def t1w(labelled, monkeypatch):
    """A T1w on the FLAIR's grid."""
    from bagau_bids.preprocessing import t1w as room

    monkeypatch.setattr(
        room, "correct_bias_field", lambda t1, mask: Image(t1.data * np.float32(1.5), t1.affine)
    )
    image = nib.load(labelled.scan.path)
    data = (300 - image.get_fdata() + np.linspace(0, 90, 60)[:, None, None]).astype("f4")
    return save(labelled.scan.path.with_name("sub-1_T1w.nii"), data, image.affine)


def test_training_and_inference_agree_on_the_t1w_too(tmp_path, labelled, quick_steps, t1w):
    from bagau_bids.preprocessing.conform import conform
    from bagau_bids.preprocessing.t1w import t1w_on_flair

    _, brain_mask, correct_bias_field, _ = quick_steps
    flair = conform(labelled.scan.path)
    mask = brain_mask(flair).mask
    corrected = correct_bias_field(flair, mask)
    t1 = t1w_on_flair(t1w, flair, mask)  # what the step of bagau-bids calls
    spy = SpyWithT1()
    with threadpool_limits(1, user_api="blas"):  # as in every step
        inputs = network_input(corrected, mask, mask * 0.5)
        inputs = add_t1(inputs, t1, mask)
    segment([loaded(spy, inputs=("flair", "t1"))], inputs, mask, batch_size=4)
    for _ in range(2):  # as computed, and as read from the cache
        prepared = prepare_scan(
            labelled, TEMPLATE, "robust", tmp_path / "cache", inputs=("flair", "t1")
        )
        shard = training_shard(prepared.inputs, prepared.reference)
        for position, given in enumerate((shard.channels["flair"], shard.channels["t1"])):
            run = np.concatenate([batch[position][:, 0] for batch in spy.seen])
            assert given.dtype == np.float32
            np.testing.assert_array_equal(given, run)


def test_cache_of_the_t1w_follows_the_t1w_alone(tmp_path, labelled, quick_steps, t1w):
    calls, cache = quick_steps[0], tmp_path / "cache"
    without = prepare_scan(labelled, TEMPLATE, "robust", cache)
    assert "t1" not in without.inputs.channels
    first = prepare_scan(labelled, TEMPLATE, "robust", cache, inputs=("flair", "t1"))
    assert "t1" in first.inputs.channels
    assert (calls, len(list(cache.iterdir()))) == (["brain"], 2)
    image = nib.load(t1w)
    save(t1w, image.get_fdata()[::-1].astype("f4"), image.affine)
    second = prepare_scan(labelled, TEMPLATE, "robust", cache, inputs=("flair", "t1"))
    assert (calls, len(list(cache.iterdir()))) == (["brain"], 3)
    assert not np.array_equal(first.inputs.channels["t1"], second.inputs.channels["t1"])
    assert len({without.key, first.key, second.key}) == 3
    np.testing.assert_array_equal(first.inputs.channels["flair"], second.inputs.channels["flair"])


def test_scan_without_t1w_is_refused_where_one_is_wanted(tmp_path, labelled, quick_steps):
    with pytest.raises(InputImageError, match="sub-1_FLAIR.nii: no T1w beside this FLAIR"):
        prepare_scan(labelled, TEMPLATE, "robust", tmp_path / "cache", inputs=("flair", "t1"))
    missing = labelled.scan.path.with_name("sub-1_T1w.nii")
    missing.symlink_to("nowhere")
    with pytest.raises(InputImageError, match="sub-1_T1w.nii: cannot be read"):
        prepare_scan(labelled, TEMPLATE, "robust", tmp_path / "cache", inputs=("flair", "t1"))


def test_network_that_asks_for_a_t1w_gets_no_other_scan(tmp_path, labelled, quick_steps):
    prepared = prepare_scan(labelled, TEMPLATE, "robust", tmp_path / "cache")
    with pytest.raises(ProcessingError, match="asks for t1 and the scan was prepared without"):
        segment(
            [loaded(SpyWithT1(), inputs=("flair", "t1"))], prepared.inputs, prepared.brain_mask
        )


def test_another_version_of_the_recipe_makes_scans_anew(
    tmp_path, labelled, quick_steps, monkeypatch
):
    first = prepare_scan(labelled, TEMPLATE, "robust", tmp_path / "cache")
    monkeypatch.setattr(dataset, "PREPROCESSING_VERSION", "next")
    assert prepare_scan(labelled, TEMPLATE, "robust", tmp_path / "cache").key != first.key
    assert quick_steps[0] == ["brain", "brain"]


def test_cache_is_used_until_the_input_changes(tmp_path, labelled, quick_steps):
    calls = quick_steps[0]
    first = prepare_scan(labelled, TEMPLATE, "robust", tmp_path / "cache")
    again = prepare_scan(labelled, TEMPLATE, "robust", tmp_path / "cache")
    assert calls == ["brain"]
    assert first.inputs.plane == again.inputs.plane
    np.testing.assert_array_equal(first.reference, again.reference)
    np.testing.assert_array_equal(first.affine, again.affine)
    prepare_scan(labelled, TEMPLATE, "paper", tmp_path / "cache")
    save(labelled.mask_path, np.zeros((60, 64, 8), np.uint8), np.diag([-2.5, 3, 6, 1.0]))
    prepare_scan(labelled, TEMPLATE, "robust", tmp_path / "cache")
    assert len(calls) == 3
    assert first.key == again.key
    assert (tmp_path / "cache" / f"{first.key}.npz").is_file()
    assert all(p.suffix == ".npz" for p in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize("which", ["", "_t1"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "others"])
def test_a_damaged_file_of_the_cache_is_named(tmp_path, labelled, quick_steps, t1w, which, damage):
    cache = tmp_path / "cache"
    prepare_scan(labelled, TEMPLATE, "robust", cache, inputs=("flair", "t1"))
    (path,) = (one for one in cache.iterdir() if ("_t1_" in one.name) == bool(which))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    damaged = {"cut": content[: len(content) // 2], "flipped": content, "empty": b""}
    if damage == "others":
        np.savez(path, other=np.zeros(3))
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(UsageError, match="remove the file, it is then made anew") as told:
        prepare_scan(labelled, TEMPLATE, "robust", cache, inputs=("flair", "t1"))
    assert str(told.value).startswith(f"{path}: ")
