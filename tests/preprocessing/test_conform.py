import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bagau_bids.errors import InputImageError
from bagau_bids.preprocessing.conform import check_start, conform, to_source

SHAPE = (9, 11, 6)
KINDS = ["RAS", "LAS", "LPS", "PSR", "ASL", "oblique"]
FORMS = ["both", "sform only", "qform only", "neither", "mismatched"]


def _rotation(degrees):
    angle = np.deg2rad(degrees)
    rotation = np.eye(4)
    rotation[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return rotation


def _volume(seed=1, dtype=np.float32):
    return np.random.default_rng(seed).uniform(1, 200, SHAPE).astype(dtype)


def _affine():
    affine = np.diag([0.9, 1.1, 5.0, 1.0])
    affine[:3, 3] = -90.3, -126.7, -71.9
    return affine


def _image(kind="RAS", form="both", cls=nib.Nifti1Image, data=None):
    image = cls(_volume() if data is None else data, _affine())
    if kind == "oblique":
        image = cls(image.dataobj, _rotation(13.7) @ image.affine)
    else:
        image = image.as_reoriented(
            nib.orientations.ornt_transform(
                nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(kind)
            )
        )
    affine = image.affine
    codes = {"sform only": (2, 0), "qform only": (0, 1), "neither": (0, 0)}.get(form, (2, 1))
    image.header.set_sform(affine, code=codes[0])
    image.header.set_qform(_rotation(4) @ affine if form == "mismatched" else affine, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    return cls(image.dataobj, None, image.header)


def _save(image, tmp_path, name="sub-01_FLAIR.nii.gz"):
    path = tmp_path / name
    nib.save(image, path)
    return path


def _refused(path):
    with pytest.raises(InputImageError) as refusal:
        conform(path)
    assert str(path) in str(refusal.value)
    return str(refusal.value)


# What comes out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_conformed_image_is_ras_and_every_voxel_keeps_its_place(tmp_path, kind, form):
    path = _save(_image(kind, form), tmp_path)
    stored = nib.load(path)
    conformed = conform(path)
    assert nib.aff2axcodes(conformed.affine) == ("R", "A", "S")
    assert conformed.data.dtype == np.float32
    if kind != "oblique" and form != "neither":
        assert conformed.stored_axes == kind
    assert conformed.data.flags.c_contiguous
    values = stored.get_fdata()
    for voxel in [(0, 0, 0), (3, 1, 2), (5, 4, 5), tuple(n - 1 for n in stored.shape)]:
        world = stored.affine @ [*voxel, 1]
        index = np.linalg.inv(conformed.affine) @ world
        found = conformed.data[tuple(np.rint(index[:3]).astype(int))]
        assert found == pytest.approx(values[voxel], rel=1e-6)


@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_go_back_to_the_grid_and_header_of_the_source(tmp_path, kind, form, cls):
    path = _save(_image(kind, form, cls), tmp_path)
    source = nib.load(path)
    mask_ras = conform(path).data > 100
    in_memory = to_source(mask_ras, source, np.uint8)
    result = nib.load(_save(in_memory, tmp_path, "mask.nii.gz"))
    assert in_memory.affine.tobytes() == source.affine.tobytes()
    assert type(result) is cls
    assert result.shape == source.shape
    assert result.affine.tobytes() == source.affine.tobytes()
    for field in (
        *("sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units"),
        *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
    ):
        assert result.header[field].tobytes() == source.header[field].tobytes(), field
    assert np.array_equal(result.header["pixdim"][:4], source.header["pixdim"][:4])
    assert np.array_equal(result.get_fdata() == 1, source.get_fdata() > 100)


def test_any_grid_conforms_and_its_results_lie_where_it_does(tmp_path):
    """Oracle: an image that holds one world coordinate, whatever order and tilt it has."""
    path = tmp_path / "sub-01_FLAIR.nii"

    @settings(max_examples=60, deadline=None)
    @given(
        order=st.permutations(range(3)),
        signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
        sizes=st.tuples(*[st.floats(0.3, 8)] * 3),
        angles=st.tuples(*[st.floats(-40, 40)] * 3),
        axis=st.integers(0, 2),
    )
    def check(order, signs, sizes, angles, axis):
        affine = np.eye(4)
        turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        affine[:3, :3] = turn @ (np.eye(3)[list(order)] * signs) * sizes
        affine[:3, 3] = -90.3, -126.7, -71.9
        indices = np.stack(np.indices(SHAPE), axis=-1)
        coordinate = (indices @ affine[:3, :3].T + affine[:3, 3])[..., axis]
        nib.save(nib.Nifti1Image(coordinate.astype(np.float32), affine), path)
        source, conformed = nib.load(path), conform(path)
        assert nib.aff2axcodes(conformed.affine) == ("R", "A", "S")
        there = np.stack(np.indices(conformed.shape), axis=-1)
        world = (there @ conformed.affine[:3, :3].T + conformed.affine[:3, 3])[..., axis]
        np.testing.assert_allclose(conformed.data, world, atol=1e-3)
        back = to_source(conformed.data, source, np.float32)
        np.testing.assert_array_equal(back.get_fdata(), source.get_fdata())
        assert back.affine.tobytes() == source.affine.tobytes()

    check()


def test_sform_wins_and_the_mismatch_is_told(tmp_path):
    conformed = conform(_save(_image("RAS", "mismatched"), tmp_path))
    assert np.allclose(conformed.affine, _affine(), atol=1e-5)
    (note,) = conformed.notes
    corners = np.array(
        [[i, j, k, 1] for i in (0, 8) for j in (0, 10) for k in (0, 5)], dtype=float
    )
    moved = corners @ (_affine() - _rotation(4) @ _affine()).T
    assert f"up to {np.linalg.norm(moved, axis=1).max():.1f} mm and 4.0 degrees" in note
    assert "sform was used" in note


def test_qform_rounding_is_not_a_mismatch(tmp_path):
    assert conform(_save(_image("oblique", "both"), tmp_path)).notes == ()


def test_missing_orientation_is_told(tmp_path):
    (note,) = conform(_save(_image("RAS", "neither"), tmp_path)).notes
    assert "Neither sform nor qform" in note


def test_invalid_qform_is_told_and_the_sform_used(tmp_path):
    image = _image()
    image.header["quatern_b"] = image.header["quatern_c"] = 0.9
    conformed = conform(_save(image, tmp_path))
    assert np.allclose(conformed.affine, _affine(), atol=1e-5)
    assert "qform is not a valid rotation" in conformed.notes[0]


def test_nan_and_infinity_become_zero_and_are_counted(tmp_path):
    data = _volume()
    data[0, 0, :3] = np.nan
    data[1, 0, 0], data[1, 0, 1] = np.inf, -np.inf
    conformed = conform(_save(_image(data=data), tmp_path))
    assert np.isfinite(conformed.data).all()
    assert (conformed.data == 0).sum() == 5
    assert "3 NaN and 2 infinite voxels of 594" in conformed.notes[0]


@pytest.mark.parametrize(("lowest", "told"), [(-1.0, False), (-50.0, True)])
def test_negative_intensities_are_told_where_they_are_more_than_ringing(tmp_path, lowest, told):
    data = _volume()
    data[0, 0, 0] = lowest
    conformed = conform(_save(_image(data=data), tmp_path))
    assert conformed.data.min() == lowest
    assert any("Intensities from -50 to" in note for note in conformed.notes) == told


def test_one_volume_in_four_dimensions_is_squeezed(tmp_path):
    path = _save(_image(data=_volume()), tmp_path)
    flat = nib.load(path)
    header = flat.header.copy()
    tall = nib.Nifti1Image(flat.get_fdata()[..., None, None], None, header)
    path = _save(tall, tmp_path, "tall.nii.gz")
    conformed = conform(path)
    assert conformed.data.shape == SHAPE
    assert "squeezed" in conformed.notes[0]
    result = to_source(conformed.data > 100, nib.load(path), np.uint8)
    assert result.shape == SHAPE
    assert result.affine.tobytes() == nib.load(path).affine.tobytes()


def test_scaling_of_the_header_is_applied(tmp_path):
    image = _image(data=_volume(dtype=np.int16))
    image.header.set_slope_inter(0.5, 10)
    path = _save(image, tmp_path)
    assert np.array_equal(nib.load(path).dataobj.get_unscaled(), image.get_fdata())
    assert np.allclose(conform(path).data, image.get_fdata() * 0.5 + 10)


def test_big_endian_files_are_read(tmp_path):
    image = _image(data=_volume(dtype=np.int16))
    header = image.header.as_byteswapped(">")
    path = _save(nib.Nifti1Image(image.dataobj, None, header), tmp_path)
    assert gzip.decompress(path.read_bytes())[:4] == b"\x00\x00\x01\x5c"
    conformed = conform(path)
    assert np.array_equal(conformed.data, image.get_fdata())
    result = to_source(conformed.data, nib.load(path), np.float32)
    assert np.array_equal(result.get_fdata(), image.get_fdata())
    assert result.affine.tobytes() == nib.load(path).affine.tobytes()


def test_slight_shear_is_told_and_kept(tmp_path):
    affine = _affine()
    affine[1, 2] = 0.1
    path = _save(nib.Nifti1Image(_volume(), affine), tmp_path)
    conformed = conform(path)
    assert np.allclose(conformed.affine, affine, atol=1e-5)
    assert any("1.15 degrees away from right angles" in note for note in conformed.notes)


def test_an_uncompressed_file_is_read(tmp_path):
    assert conform(_save(_image(), tmp_path, "sub-01_FLAIR.nii")).data.shape == SHAPE


# What is written


def _raw_header(image):
    return nib.Nifti1Header(image.to_bytes()[:348], check=False)


def test_a_mask_is_stored_as_plain_bytes_without_the_sources_description(tmp_path):
    image = _image(data=_volume(dtype=np.int16))
    image.header["descrip"] = b"patient name"
    image.header["intent_name"] = b"something"
    image.header["cal_max"] = 700
    image.header.set_slope_inter(3, 7)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"private"))
    source = nib.load(_save(image, tmp_path))
    result = to_source(np.ones(SHAPE, bool), source, np.uint8)
    raw = _raw_header(result)
    assert raw.get_data_dtype() == np.uint8
    assert raw["descrip"] == b""
    assert raw["intent_name"] == b""
    assert (raw["cal_min"], raw["cal_max"]) == (0, 1)
    assert raw["scl_slope"] == 1 or np.isnan(raw["scl_slope"])
    assert len(result.header.extensions) == 0
    assert source.header["cal_max"] == 700


def test_a_probability_keeps_its_values(tmp_path):
    source = nib.load(_save(_image("LPS"), tmp_path))
    probability = np.random.default_rng(0).uniform(0, 1, SHAPE).astype(np.float32)
    result = nib.load(_save(to_source(probability, source, np.float32), tmp_path, "p.nii.gz"))
    assert result.get_data_dtype() == np.float32
    assert np.array_equal(np.asarray(result.dataobj)[::-1, ::-1], probability)


def test_an_image_of_intensities_leaves_the_display_range_to_the_viewer(tmp_path):
    source = nib.load(_save(_image(), tmp_path))
    assert to_source(_volume(), source, np.float32).header["cal_max"] == 0


def test_values_that_the_type_cannot_hold_are_refused(tmp_path):
    source = nib.load(_save(_image(), tmp_path))
    with pytest.raises(ValueError, match="do not fit into uint8"):
        to_source(np.full(SHAPE, 0.5), source, np.uint8)


def test_an_array_of_another_grid_is_refused(tmp_path):
    source = nib.load(_save(_image(), tmp_path))
    with pytest.raises(ValueError, match="does not lie on a source grid"):
        to_source(np.zeros((3, 3, 3)), source, np.uint8)


# What is refused


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in _refused(tmp_path / "none.nii.gz")


def test_a_dangling_link_is_refused_with_the_command_that_helps(tmp_path):
    link = tmp_path / "sub-01_FLAIR.nii.gz"
    link.symlink_to(tmp_path / ".git" / "annex" / "objects" / "key")
    assert f"its content was not fetched; run: datalad get {link}" in _refused(link)


@pytest.mark.parametrize(
    "content",
    [b"/annex/objects/MD5E-s12--abc.nii.gz\n", b"version https://git-lfs.github.com/spec/v1\n"],
)
def test_a_pointer_in_place_of_the_content_is_refused(tmp_path, content):
    path = tmp_path / "sub-01_FLAIR.nii.gz"
    path.write_bytes(content)
    assert "holds a pointer" in _refused(path)


def test_a_folder_is_refused(tmp_path):
    folder = tmp_path / "sub-01_FLAIR.nii.gz"
    folder.mkdir()
    assert "is a folder" in _refused(folder)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "sub-01_FLAIR.nii.gz"
    path.touch()
    assert "empty (0 bytes)" in _refused(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path):
    path = _save(_image(), tmp_path)
    path.chmod(0)
    assert "check its permissions" in _refused(path)


def test_a_gz_that_is_not_gzipped_is_refused(tmp_path):
    plain = _save(_image(), tmp_path, "plain.nii")
    path = plain.rename(tmp_path / "sub-01_FLAIR.nii.gz")
    assert "not gzipped" in _refused(path)


def test_a_text_named_gz_is_no_image(tmp_path):
    path = tmp_path / "sub-01_FLAIR.nii.gz"
    path.write_text("hello")
    assert "is not a NIfTI image" in _refused(path)


def test_the_start_of_a_file_is_checked_without_the_rest(tmp_path):
    path = _save(_image(), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    check_start(path)
    assert "truncated" in _refused(path)
    for start in (b"", b"hello", content[:20]):
        path.write_bytes(start)
        with pytest.raises(InputImageError, match=str(path)):
            check_start(path)


def test_a_gzipped_nii_is_refused(tmp_path):
    path = _save(_image(), tmp_path).rename(tmp_path / "sub-01_FLAIR.nii")
    assert "rename it to .nii.gz" in _refused(path)


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.999])
def test_a_truncated_gzip_is_refused(tmp_path, keep):
    path = _save(_image(), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert "truncated or damaged" in _refused(path)


def test_a_gzip_with_a_wrong_checksum_is_refused(tmp_path):
    path = _save(_image(), tmp_path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF
    path.write_bytes(content)
    assert "truncated or damaged" in _refused(path)


def test_a_truncated_plain_file_is_refused(tmp_path):
    path = _save(_image(), tmp_path, "sub-01_FLAIR.nii")
    path.write_bytes(path.read_bytes()[:-100])
    assert "data are truncated" in _refused(path)


@pytest.mark.parametrize("content", [b"not an image", b"\x5c\x01\x00\x00" + bytes(400)])
def test_something_else_than_nifti_is_refused(tmp_path, content):
    path = tmp_path / "sub-01_FLAIR.nii.gz"
    path.write_bytes(gzip.compress(content))
    assert "is not a NIfTI image" in _refused(path)


def test_a_header_that_cannot_be_used_is_refused(tmp_path):
    content = bytearray(_image().to_bytes())
    content[70:72] = (4096 + 7).to_bytes(2, "little")  # datatype
    path = tmp_path / "sub-01_FLAIR.nii"
    path.write_bytes(content)
    assert "header cannot be used" in _refused(path)


def test_several_volumes_are_refused(tmp_path):
    path = _save(nib.Nifti1Image(np.ones((*SHAPE, 2)), np.eye(4)), tmp_path)
    assert "several volumes, shape (9, 11, 6, 2)" in _refused(path)


def test_colour_is_refused(tmp_path):
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "colour (RGB)" in _refused(_save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path))


def test_complex_numbers_are_refused(tmp_path):
    path = _save(nib.Nifti1Image(_volume().astype(np.complex64), np.eye(4)), tmp_path)
    assert "complex voxels" in _refused(path)


def test_two_dimensions_are_refused(tmp_path):
    path = _save(nib.Nifti1Image(_volume()[..., 0], np.eye(4)), tmp_path)
    assert "2 dimensions" in _refused(path)


def test_few_slices_are_refused(tmp_path):
    path = _save(nib.Nifti1Image(_volume()[..., :4], np.eye(4)), tmp_path)
    assert "only 4 slices" in _refused(path)


def test_zeros_are_refused(tmp_path):
    assert "every voxel is zero" in _refused(_save(_image(data=np.zeros(SHAPE)), tmp_path))


def test_a_constant_image_is_refused(tmp_path):
    data = np.full(SHAPE, 12.5)
    assert "same value (12.5)" in _refused(_save(_image(data=data), tmp_path))


def test_nothing_but_nan_is_refused(tmp_path):
    data = np.full(SHAPE, np.nan, np.float32)
    assert "every voxel is zero or not a number" in _refused(_save(_image(data=data), tmp_path))


@pytest.mark.parametrize("column", [0, 2])
def test_an_affine_of_zeros_is_refused(tmp_path, column):
    image = _image()
    for row in ("srow_x", "srow_y", "srow_z"):
        image.header[row][: column + 1] = 0
    assert "zero or flat" in _refused(_save(image, tmp_path))


def test_an_affine_that_is_not_finite_is_refused(tmp_path):
    image = _image()
    image.header["srow_x"][0] = np.nan
    assert "not finite" in _refused(_save(image, tmp_path))


@pytest.mark.parametrize("scale", [0.001, 30])
def test_absurd_voxel_sizes_are_refused(tmp_path, scale):
    affine = _affine() @ np.diag([scale, scale, scale, 1])
    path = _save(nib.Nifti1Image(_volume(), affine), tmp_path)
    assert "expected 0.1 to 20 mm" in _refused(path)


def test_strong_shear_is_refused(tmp_path):
    affine = _affine()
    affine[1, 2] = 3
    path = _save(nib.Nifti1Image(_volume(), affine), tmp_path)
    assert "degrees away from right angles" in _refused(path)


@pytest.mark.realdata
def test_clinical_scans_conform_and_return(shared_data):
    paths = sorted(shared_data.glob("ds-*/sub-*/**/anat/*_FLAIR.nii.gz"))[::5]
    assert paths
    for path in paths:
        source = nib.load(path)
        conformed = conform(path)
        result = to_source(conformed.data, source, np.float32)
        assert np.array_equal(result.get_fdata(), source.get_fdata(dtype=np.float32))
        assert result.affine.tobytes() == source.affine.tobytes()
