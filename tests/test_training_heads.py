"""Heads made ready for training: their atlas and lesion shapes, stored; pools drawn from them."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from synthetic_heads import (
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
from bagau_bids.training import heads
from bagau_bids.training.pool import Shard, open_pool
from bagau_bids.training.synthesis.engine import SynthesisSettings, synthesise
from bagau_bids.training.synthesis.labels import CLASS_OF, Head
from bagau_bids.training.synthesis.lesions import LesionSettings

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
        shift_sd_mm=4.0,
    )
    settings = SynthesisSettings(lesions=only_real)
    fine = replace(settings.acquisition, isotropic_probability=1, isotropic_mm=(2.0, 2.0))
    scan = synthesise(prepared.head, 1, replace(settings, acquisition=fine), prepared.lesions)
    assert scan.wmh_mask.any()
    assert (scan.wm_true[scan.wmh_mask] > 0.5).mean() > 0.9


def test_stored_head_comes_back(prepared, tmp_path):
    heads.save_training_head(tmp_path / "deep" / "a.npz", prepared)
    heads.save_training_head(tmp_path / "deep" / "b.npz", replace(prepared, lesions=None))
    first, second = heads.load_training_heads(tmp_path / "deep")
    for name in ("labels", "affine", "wm_atlas"):
        np.testing.assert_array_equal(getattr(first.head, name), getattr(prepared.head, name))
    assert first.lesions.shape == prepared.lesions.shape
    np.testing.assert_array_equal(first.lesions.spacing_mm, [4, 4, 4])
    for name in ("voxels", "components"):
        stored, given = getattr(first.lesions, name), getattr(prepared.lesions, name)
        assert len(stored) == len(given) == 3
        for ours, theirs in zip(stored, given, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert second.lesions is None
    assert len(list((tmp_path / "deep").iterdir())) == 2


def test_folder_without_heads_is_refused(tmp_path):
    with pytest.raises(UsageError, match="found no prepared head"):
        heads.load_training_heads(tmp_path)


def test_head_without_atlas_is_not_stored(tmp_path):
    bare = heads.TrainingHead(Head(labels(), affine()), None)
    with pytest.raises(ValueError, match="no atlas"):
        heads.save_training_head(tmp_path / "a.npz", bare)


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
    with pytest.raises(UsageError, match="patient3 is not there, expected some of patient2 pat"):
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
    for name in ("flair", "atlas", "target"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(second, name))
    assert 0 < len(alone.flair) <= 32


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
            yield Shard(value, value, value > 1)

    monkeypatch.setattr(heads, "synthetic_shards", shards)
    heads.draw_pool([], tmp_path, 20, 0)
    (tmp_path / "synthetic-00000_target.npy").unlink()
    heads.draw_pool([], tmp_path, 30, 0)
    assert drawn == [*range(20), *range(10), *range(20, 30)]
    atlas = open_pool(tmp_path).read(range(30)).atlas
    np.testing.assert_allclose(atlas[:, 0, 0] * 255, range(30), rtol=1e-5)


@pytest.mark.parametrize("volumes", [5, 0])
def test_pool_is_made_of_whole_shards(tmp_path, volumes):
    with pytest.raises(UsageError, match=f"{volumes} volumes were asked .* ask for 10"):
        heads.draw_pool([], tmp_path, volumes, 0)
