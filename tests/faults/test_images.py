"""Files that are no image, and images that cannot be: each is refused by its name, or read."""

import gzip
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bagau_bids.errors import InputImageError
from bagau_bids.preprocessing.conform import conform

SHAPE = (12, 14, 6)
AFFINE = np.diag([1.0, 1.0, 5.0, 1.0])


def values(dtype=np.int16, shape=SHAPE):
    return np.random.default_rng(0).uniform(1, 200, shape).astype(dtype)


def stored(data=None, affine=AFFINE):
    return bytearray(nib.Nifti1Image(values() if data is None else data, affine).to_bytes())


def written(folder, content, name="sub-01_FLAIR.nii.gz"):
    path = folder / name
    path.write_bytes(gzip.compress(bytes(content)) if name.endswith(".gz") else bytes(content))
    return path


def refused(path):
    with pytest.raises(InputImageError) as told:
        conform(path)
    assert str(path) in str(told.value)
    return str(told.value)


def read_or_refused(path):
    """What was read, or None where the file was refused by its name; nothing else may happen."""
    try:
        return conform(path)
    except InputImageError as error:
        told = str(error)
    assert str(path) in told
    return None


def read(path):
    found = conform(path)
    np.testing.assert_array_equal(found.data, values().astype(np.float32))
    return " ".join(found.notes)


def peak_mib(path):
    tracemalloc.start()
    try:
        return refused(path), tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


# gzip


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.99])
def test_truncated_gzip(tmp_path, share):
    path = written(tmp_path, stored())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "the gzip stream is truncated or damaged" in refused(path)


def test_any_flipped_bit_of_a_gzip_is_refused_or_changes_nothing(tmp_path):
    path = written(tmp_path, stored())
    whole = path.read_bytes()
    expected = conform(path).data

    @settings(max_examples=100, deadline=None)
    @given(place=st.integers(0, 8 * len(whole) - 1))
    def flip(place):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        found = read_or_refused(path)
        if found is not None:  # the name and the time in the gzip header: nothing depends on them
            np.testing.assert_array_equal(found.data, expected)

    flip()


def test_gzip_bomb_after_an_image_fills_no_memory(tmp_path):
    path = tmp_path / "sub-01_FLAIR.nii.gz"
    pack = zlib.compressobj(1, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        file.write(pack.compress(bytes(stored())))
        for _ in range(150):  # MiB
            file.write(pack.compress(bytes(2**20)))
        file.write(pack.flush())
    assert path.stat().st_size < 2**20
    message, mib = peak_mib(path)
    assert "goes on for more than 16 MiB after" in message
    assert mib < 60


def test_header_that_asks_for_all_memory(tmp_path):
    content = stored()
    content[42:48] = np.array((30000, 30000, 30000), "<i2").tobytes()
    message, mib = peak_mib(written(tmp_path, content))
    assert "has 27000000000000 voxels" in message
    assert "expected at most 536870912: the header is wrong" in message
    assert mib < 60


def test_text_after_the_gzip_stream_is_left_out_as_gzip_does(tmp_path):
    path = written(tmp_path, stored())
    path.write_bytes(path.read_bytes() + b"<html>404 not found</html>")
    assert "Something that is not gzipped follows the gzip stream" in read(path)


@pytest.mark.parametrize("zeros", [0, 1, 4096])
def test_gzip_of_several_members_is_one_image(tmp_path, zeros):
    content = bytes(stored())
    pieces = [gzip.compress(content[:1000]), gzip.compress(content[1000:])]
    path = tmp_path / "sub-01_FLAIR.nii.gz"
    path.write_bytes(b"".join(piece + bytes(zeros) for piece in pieces))
    assert read(path) == ""


def test_a_little_after_the_image_is_left_out(tmp_path):
    assert read(written(tmp_path, stored() + bytes(1000))) == ""


# Header


@pytest.mark.parametrize("magic", [b"ni1\0", b"abc\0", b"\0\0\0\0"])
def test_wrong_magic(tmp_path, magic):
    content = stored()
    content[344:348] = magic
    assert "is not a NIfTI image; expected a single-file" in refused(written(tmp_path, content))


@pytest.mark.parametrize(
    ("length", "words"),
    [(0, "0 bytes"), (3, "is not a NIfTI image"), (347, "the header is truncated")],
)
def test_header_that_ends_early(tmp_path, length, words):
    assert words in refused(written(tmp_path, stored()[:length], "sub-01_FLAIR.nii"))


@pytest.mark.parametrize("dimensions", [(-5, 14, 6), (0, 14, 6)])
def test_sizes_that_are_none(tmp_path, dimensions):
    content = stored()
    content[42:48] = np.array(dimensions, "<i2").tobytes()
    assert "the NIfTI header cannot be used" in refused(written(tmp_path, content))


@pytest.mark.parametrize("offset", [np.nan, np.inf, -1.0, 1e30])
def test_image_data_that_begin_nowhere(tmp_path, offset):
    content = stored()
    content[108:112] = np.float32(offset).tobytes()
    assert "image data from byte" in refused(written(tmp_path, content))


def test_any_flipped_bit_of_a_header_is_refused_by_name_or_read(tmp_path):
    path, content = tmp_path / "sub-01_FLAIR.nii", stored()

    @settings(max_examples=200, deadline=None)
    @given(place=st.integers(0, 8 * 352 - 1))
    def flip(place):
        broken = bytearray(content)
        broken[place // 8] ^= 1 << place % 8
        path.write_bytes(broken)
        found = read_or_refused(path)
        if found is not None:
            assert np.isfinite(found.data).all()
            assert np.isfinite(found.affine).all()

    flip()


# Shapes and voxels


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_one_slice_or_few(tmp_path, slices):
    path = written(tmp_path, stored(values(shape=(12, 14, slices))))
    assert f"has only {slices} slices" in refused(path)


def test_thousand_slices(tmp_path):
    data = values(shape=(12, 14, 1000))
    found = conform(written(tmp_path, stored(data, np.diag([1, 1, 0.15, 1]))))
    assert found.data.shape == data.shape
    assert found.notes == ()


@pytest.mark.parametrize("size", [0.1, 20.0])
def test_smallest_and_largest_voxels(tmp_path, size):
    assert conform(written(tmp_path, stored(affine=np.diag([size, size, size, 1])))).notes == ()


@pytest.mark.parametrize(
    ("size", "unit", "name"),
    [(0.0009, 1, "meter"), (900.0, 3, "micron"), (0.09, 2, "mm"), (21.0, 2, "mm")],
)
def test_voxels_that_are_none_of_a_head_or_in_another_unit(tmp_path, size, unit, name):
    content = stored(affine=np.diag([size, size, size, 1]))
    content[123] = unit
    message = refused(written(tmp_path, content))
    assert "mm: the header is wrong or in another unit" in message
    assert f"({name})" in message


@pytest.mark.parametrize("sign", [0, -1])
def test_zero_and_negative_pixdim_beside_an_sform(tmp_path, sign):
    content = stored()
    content[80:92] = (sign * np.array([1, 1, 5], "<f4")).tobytes()
    np.testing.assert_allclose(conform(written(tmp_path, content)).affine, stored_affine())


def stored_affine():
    return nib.Nifti1Image(values(), AFFINE).affine


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_affine_that_is_not_finite(tmp_path, value):
    content = stored()
    content[280:284] = np.float32(value).tobytes()
    assert "the affine is not finite" in refused(written(tmp_path, content))


def test_singular_affine(tmp_path):
    image = nib.Nifti1Image(values(), AFFINE)
    image.header["srow_x"], image.header["srow_y"] = [1, 1, 0, 0], [0, 0, 0, 0]
    path = written(tmp_path, nib.Nifti1Image(values(), None, image.header).to_bytes())
    assert "the affine is zero or flat along an axis" in refused(path)


@pytest.mark.parametrize(("degrees", "fine"), [(2, True), (30, False)])
def test_sheared_axes(tmp_path, degrees, fine):
    affine = AFFINE.copy()
    affine[0, 1] = np.tan(np.deg2rad(degrees))
    path = written(tmp_path, stored(affine=affine))
    if fine:
        assert "degrees away from right angles; repaired" in " ".join(conform(path).notes)
    else:
        assert "can be repaired: resample the image" in refused(path)


@pytest.mark.parametrize("shape", [(12, 14, 6, 2), (12, 14, 6, 1, 3)])
def test_several_volumes(tmp_path, shape):
    assert "has several volumes, shape" in refused(written(tmp_path, stored(values(shape=shape))))


@pytest.mark.parametrize("shape", [(12, 14, 6, 1), (12, 14, 6, 1, 1)])
def test_one_volume_in_more_dimensions(tmp_path, shape):
    content = bytearray(nib.Nifti1Image(values().reshape(shape), AFFINE).to_bytes())
    assert "squeezed to three dimensions" in read(written(tmp_path, content))


# Numbers


def test_colour(tmp_path):
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "has colour (RGB) voxels" in refused(written(tmp_path, stored(rgb)))


def test_complex_numbers(tmp_path):
    path = written(tmp_path, stored(values(np.complex64)))
    assert "give the magnitude image" in refused(path)


@pytest.mark.parametrize("dtype", ["i8", "u8", "u4", "f8", "u1"])
def test_numbers_of_any_real_type(tmp_path, dtype):
    image = nib.Nifti1Image(values(dtype), AFFINE, dtype=np.dtype(dtype))
    found = conform(written(tmp_path, image.to_bytes()))
    np.testing.assert_array_equal(found.data, values(dtype).astype(np.float32))


def test_infinities_and_numbers_beyond_single_precision(tmp_path):
    data = values(np.float64)
    data[0, 0, :3] = np.inf, -np.inf, 1e300
    found = conform(written(tmp_path, stored(data)))
    assert "0 NaN and 3 infinite voxels of 1008 were set to 0" in " ".join(found.notes)
    np.testing.assert_array_equal(found.data[0, 0], [0, 0, 0, *data[0, 0, 3:].astype("f4")])


@pytest.mark.parametrize("value", [0, 7])
def test_constant_image(tmp_path, value):
    message = refused(written(tmp_path, stored(np.full(SHAPE, value, np.int16))))
    assert "there is no image to process" in message


def smooth():
    """A continuous image of 0 to 1."""
    axes = np.ogrid[tuple(slice(-1, 1, complex(n)) for n in SHAPE)]
    return np.clip(1 - sum(axis**2 for axis in axes) / 2, 0, 1)


def test_wrapped_numbers(tmp_path):
    """Unsigned numbers read as signed: the brightest became the lowest."""
    bright = (60_000 * smooth()).astype(np.uint16)
    message = refused(written(tmp_path, stored(bright.view(np.int16))))
    assert "intensities wrapped round: at" in message
    assert "(most likely unsigned read as signed)" in message


@pytest.mark.parametrize("dtype", [np.int16, np.int8])
def test_negative_numbers_read_as_unsigned(tmp_path, dtype):
    """Ringing and noise below zero became the highest numbers of the type."""
    noise = np.random.default_rng(0).normal(0, 2, SHAPE)
    signed = (100 * np.clip(smooth() - 0.5, 0, 1) + noise).astype(dtype)
    unsigned = signed.view(f"u{signed.itemsize}")
    image = nib.Nifti1Image(unsigned, AFFINE, dtype=unsigned.dtype)
    message = refused(written(tmp_path, image.to_bytes()))
    assert "intensities wrapped round: at" in message
    assert "(most likely signed read as unsigned)" in message


def test_one_extreme_voxel_changes_no_other(tmp_path):
    data = values()
    data[5, 6, 3] = -32768
    found = conform(written(tmp_path, stored(data)))
    assert "were replaced by the median of their neighbours" in " ".join(found.notes)
    others = np.ones(SHAPE, bool)
    others[5, 6, 3] = False
    np.testing.assert_array_equal(found.data[others], values()[others])
    assert 1 <= found.data[5, 6, 3] <= 200


def test_a_scan_that_is_refused_harms_no_other(tmp_path):
    bad = written(tmp_path, stored(np.zeros(SHAPE, np.int16)), "sub-01_FLAIR.nii.gz")
    good = written(tmp_path, stored(), "sub-02_FLAIR.nii.gz")
    refused(bad)
    assert read(good) == ""
