"""Heads made ready for training: their atlas and lesion shapes, stored; pools drawn from them."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from synthetic_heads import (
    MIXTURE,
    SHAPE,
    affine,
    ball,
    draw_coarsely,
    labels,
    register_nothing,
    save,
    write_inputs,
)

from bagau_bids.errors import InputImageError, UsageError
from bagau_bids.preprocessing.template import Template
from bagau_bids.synthesis import heads
from bagau_bids.synthesis.engine import SynthesisSettings, synthesise
from bagau_bids.synthesis.labels import CLASS_OF, Head
from bagau_bids.synthesis.lesions import LesionSettings, LesionShapes
from bagau_bids.synthesis.pool import Shard, open_pool

TEMPLATE = Template("Fake", Path("t1w"), Path("wm"), Path("mask"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """One head with the lesions of three masks."""
    with pytest.MonkeyPatch.context() as patch:
        register_nothing(patch)
        (label_map, _), masks = write_inputs(tmp_path_factory.mktemp("inputs"))
        return heads.prepare_head(label_map, TEMPLATE, masks)


def world(flat, shape, matrix):
    voxels = np.stack(np.unravel_index(flat, shape), axis=1)
    return {tuple(p) for p in nib.affines.apply_affine(matrix, voxels).round(3)}


def test_head_is_cropped_and_lesions_keep_their_place(prepared):
    head, lesions = prepared.head, prepared.lesions
    assert head.labels.shape < SHAPE
    assert head.wm_atlas.dtype == np.uint8
    assert (head.labels > 0).sum() == (labels() > 0).sum()
    assert [len(np.unique(c)) for c in lesions.components] == [1, 2, 3]
    expected = np.flatnonzero(ball((14, 18, 26), (1.5, 1.5, 1.5)))
    assert world(lesions.voxels[0], head.labels.shape, head.affine) == world(
        expected, SHAPE, affine()
    )


def test_lesion_shapes_are_painted_inside_white_matter(prepared):
    classes = prepared.head.classes.numpy().ravel()
    for voxels in prepared.lesions.voxels:
        assert (classes[voxels] == CLASS_OF["white_matter"]).all()
    only_real = LesionSettings(
        none_probability=0,
        real_probability=1,
        periventricular_probability=0,
        deep_probability=0,
        labelled_probability=0,
        keep_component=(1, 1),
        **MIXTURE,
        shift_sd_mm=4.0,
    )
    settings = SynthesisSettings(lesions=only_real)
    fine = replace(settings.acquisition, isotropic_probability=1, isotropic_mm=(2.0, 2.0))
    scan = synthesise(prepared.head, 1, replace(settings, acquisition=fine), prepared.lesions)
    assert scan.wmh_mask.any()
    assert (scan.wm_true[scan.wmh_mask] > 0.5).mean() > 0.9


def test_stored_head_comes_back(prepared, tmp_path):
    prepared = replace(prepared, infarcts=prepared.lesions)
    heads.save_training_head(tmp_path / "deep" / "a.npz", prepared)
    heads.save_training_head(tmp_path / "deep" / "b.npz", replace(prepared, lesions=None))
    first, second = heads.load_training_heads(tmp_path / "deep")
    for name in ("labels", "affine", "wm_atlas"):
        np.testing.assert_array_equal(getattr(first.head, name), getattr(prepared.head, name))
    for kind, name in product(("lesions", "infarcts"), ("voxels", "components")):
        shapes = getattr(first, kind)
        assert shapes.shape == prepared.lesions.shape
        np.testing.assert_array_equal(shapes.spacing_mm, [4, 4, 4])
        stored, given = getattr(shapes, name), getattr(prepared.lesions, name)
        assert len(stored) == len(given) == 3
        for ours, theirs in zip(stored, given, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert second.lesions is None
    assert second.infarcts is not None
    assert len(list((tmp_path / "deep").iterdir())) == 2


def test_folder_without_heads_is_refused(tmp_path):
    with pytest.raises(UsageError, match="found no prepared head"):
        heads.load_training_heads(tmp_path)


def test_head_without_atlas_is_not_stored(tmp_path):
    bare = heads.TrainingHead(Head(labels(), affine()), None)
    with pytest.raises(ValueError, match="no atlas"):
        heads.save_training_head(tmp_path / "a.npz", bare)


def test_head_carries_infarcts_cut_to_its_brain(tmp_path, monkeypatch):
    register_nothing(monkeypatch)
    maps, masks = write_inputs(tmp_path)
    skull = (labels() == 511) | (labels() == 515)
    wide = save(tmp_path / "wide.nii.gz", ball((10, 30, 26), (9, 6, 6)).astype(np.uint8))
    nothing = save(tmp_path / "none.nii.gz", np.zeros(SHAPE, np.uint8))
    infarcts = [nothing, wide, masks[1]]
    found = heads.prepare_head(maps[0], TEMPLATE, [], infarcts)
    assert found.lesions is None
    shape, matrix = found.head.labels.shape, found.head.affine
    places = {frozenset(world(v, shape, matrix)) for v in found.infarcts.voxels}
    expected = [np.flatnonzero(ball((10, 30, 26), (9, 6, 6)) & ~skull & (labels() > 0))]
    expected += [np.flatnonzero(nib.load(masks[1]).get_fdata())]
    assert places == {frozenset(world(v, SHAPE, affine())) for v in expected}
    assert sorted(len(np.unique(c)) for c in found.infarcts.components) == [1, 2]
    with pytest.raises(InputImageError, match="none of 1 masks has an infarct in the brain"):
        heads.prepare_head(maps[0], TEMPLATE, [], [nothing])


def test_each_head_draws_its_own_infarcts(tmp_path, monkeypatch):
    register_nothing(monkeypatch)
    monkeypatch.setattr(heads, "HEAD_INFARCTS", 4)
    maps, _ = write_inputs(tmp_path)
    infarcts = [
        save(tmp_path / "i" / f"{n}.nii.gz", ball((14, 14 + n, 26), (2, 2, 2)).astype(np.uint8))
        for n in range(20)
    ]
    drawn = [
        {int(v[0]) for v in heads.prepare_head(path, TEMPLATE, [], infarcts).infarcts.voxels}
        for path in (maps[0], maps[0], maps[1])
    ]
    assert [len(some) for some in drawn] == [4, 4, 4]
    assert drawn[0] == drawn[1] != drawn[2]


def test_runs_hold_the_very_voxels(tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.random((9, 8, 7)) < share for share in (0.5, 0.0, 1.0, 0.1)]
    given = LesionShapes.from_masks(masks, np.ones(3))
    runs = given.to_runs()
    assert runs["counts"][1:3].tolist() == [0, 1]
    back = LesionShapes.from_runs((9, 8, 7), np.ones(3), runs)
    for name in ("voxels", "components"):
        for ours, theirs in zip(getattr(back, name), getattr(given, name), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype


def test_heads_stored_without_runs_are_read(prepared, tmp_path):
    lesions = prepared.lesions
    np.savez_compressed(
        tmp_path / "old.npz",
        labels=prepared.head.labels,
        affine=prepared.head.affine,
        wm_atlas=prepared.head.wm_atlas,
        lesion_voxels=np.concatenate(lesions.voxels),
        lesion_components=np.concatenate(lesions.components),
        lesion_counts=[len(v) for v in lesions.voxels],
    )
    old = heads.load_training_head(tmp_path / "old.npz")
    assert old.infarcts is None
    for ours, theirs in zip(old.lesions.voxels, lesions.voxels, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "missing", ["labels", "affine", "wm_atlas", "lesion_counts", "lesion_starts"]
)
def test_head_that_lacks_an_array_is_named(prepared, tmp_path, missing):
    heads.save_training_head(tmp_path / "a.npz", prepared)
    with np.load(tmp_path / "a.npz") as stored:
        arrays = {name: array for name, array in stored.items() if name != missing}
    np.savez(tmp_path / "a.npz", **arrays)
    said = rf"a\.npz: found no {missing} in its arrays \(.*\), expected a prepared head"
    with pytest.raises(UsageError, match=rf"{said}.*; copy it again, or remove it"):
        heads.load_training_head(tmp_path / "a.npz")


def test_head_stored_without_runs_that_lacks_an_array_is_named(prepared, tmp_path):
    head = prepared.head
    arrays = {"labels": head.labels, "affine": head.affine, "wm_atlas": head.wm_atlas}
    np.savez(tmp_path / "old.npz", **arrays, lesion_voxels=np.arange(3), lesion_counts=[3])
    with pytest.raises(UsageError, match=r"old\.npz: found no lesion_components in its arrays"):
        heads.load_training_head(tmp_path / "old.npz")


@pytest.mark.parametrize("content", [None, b"", b"text", slice(None, -100), slice(None, 100)])
def test_head_that_is_damaged_is_named(prepared, tmp_path, content):
    path = tmp_path / "a.npz"
    heads.save_training_head(path, prepared)
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[content] if isinstance(content, slice) else content)
    with pytest.raises(UsageError, match=r"a\.npz: cannot be read \(.*\), expected a prepared"):
        heads.load_training_head(path)


def test_heads_are_prepared_once(tmp_path, monkeypatch):
    calls = register_nothing(monkeypatch)
    maps, masks = write_inputs(tmp_path)
    heads.prepare_heads(maps[:1], TEMPLATE, masks, tmp_path / "heads")
    found = heads.prepare_heads(maps, TEMPLATE, masks, tmp_path / "heads")
    assert len(calls) == len(found) == 2
    assert [p.name for p in sorted((tmp_path / "heads").iterdir())] == ["head1.npz", "head2.npz"]


def test_masks_are_left_out_by_name():
    paths = [Path(f"/m/patient{n}_mask.nii.gz") for n in (2, 26, 27)]
    for name in ("patient2", "patient2_mask", "patient2_mask.nii.gz"):
        assert heads.without_masks(paths, [name]) == paths[1:]
    assert heads.without_masks(paths, []) == paths
    with pytest.raises(UsageError, match="patient3 is not there, expected some of patient2, pat"):
        heads.without_masks(paths, ["patient3", "patient26"])
    with pytest.raises(UsageError, match="all 3 were named"):
        heads.without_masks(paths, ["patient2", "patient26", "patient27"])


def test_masks_of_another_space_or_damaged_are_refused(tmp_path, monkeypatch):
    register_nothing(monkeypatch)
    (label_map, _), _ = write_inputs(tmp_path)
    outside = save(tmp_path / "away.nii.gz", np.eye(3, dtype=np.uint8)[..., None])
    with pytest.raises(InputImageError, match="none of 1 lesion masks has a lesion in the brain"):
        heads.prepare_head(label_map, TEMPLATE, [outside])
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(b"no image")
    with pytest.raises(InputImageError, match="damaged.nii.gz: found no readable NIfTI"):
        heads.prepare_head(label_map, TEMPLATE, [damaged])


def test_scan_of_a_stream_depends_on_its_number_alone(prepared, monkeypatch):
    draw_coarsely(monkeypatch)
    (alone,) = heads.synthetic_shards([prepared], range(1, 2), 5)
    _, second = heads.synthetic_shards([prepared], range(2), 5)
    assert list(alone.channels) == ["flair", "atlas"]
    for name, channel in alone.channels.items():
        np.testing.assert_array_equal(channel, second.channels[name])
    np.testing.assert_array_equal(alone.target, second.target)
    assert 0 < len(alone) <= 32


def test_scan_without_atlas_gives_no_slices(prepared):
    scan = synthesise(replace(prepared.head, wm_atlas=None), 0)
    with pytest.raises(ValueError, match="no atlas"):
        heads.scan_shard(scan, np.random.default_rng(0))


def test_pool_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    drawn = []

    def shards(_, numbers, seed, device):
        for number in numbers:
            drawn.append(number)
            value = np.full((1, 200, 200), number / 255)
            yield Shard({"flair": value, "atlas": value}, value > 1)

    monkeypatch.setattr(heads, "synthetic_shards", shards)
    heads.draw_pool([], tmp_path, 20, 0)
    (tmp_path / "synthetic-00000_target.npy").unlink()
    heads.draw_pool([], tmp_path, 30, 0)
    assert drawn == [*range(20), *range(10), *range(20, 30)]
    atlas = open_pool(tmp_path).read(range(30)).channels["atlas"]
    np.testing.assert_allclose(atlas[:, 0, 0] * 255, range(30), rtol=1e-5)


@pytest.mark.parametrize("volumes", [5, 0])
def test_pool_is_made_of_whole_shards(tmp_path, volumes):
    with pytest.raises(UsageError, match=f"{volumes} volumes were asked .* ask for 10"):
        heads.draw_pool([], tmp_path, volumes, 0)
