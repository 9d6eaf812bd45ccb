"""Pools of slices, in memory and on disk."""

import numpy as np
import pytest

from bagau_bids.errors import UsageError
from bagau_bids.network.slices import PLANE_SIZE, SlicePlane, network_input
from bagau_bids.spaces import Image
from bagau_bids.synthesis.pool import (
    Shard,
    SlicePool,
    claim_pool,
    describe_pool,
    join_shards,
    open_pool,
    pool_digest,
    read_origin,
    target_slices,
    training_shard,
    write_shard,
)


def shard(count, first, size=PLANE_SIZE):
    """Slices that hold their own number."""
    numbers = np.arange(first, first + count)[:, None, None] * np.ones((1, size, size))
    return Shard(
        {"flair": numbers.astype(np.float32), "atlas": (numbers / 255).astype(np.float32)},
        (numbers % 3).astype(np.uint8),
    )


def test_slices_of_several_shards_have_one_running_number():
    pool = SlicePool([shard(3, 0, 4), shard(2, 3, 4), shard(1, 5, 4)])
    assert len(pool) == 6
    read = pool.read([5, 0, 3, 2])
    flair, atlas, target = *read.channels.values(), read.target
    assert flair[:, 0, 0].tolist() == [5, 0, 3, 2]
    np.testing.assert_allclose(atlas[:, 1, 1] * 255, [5, 0, 3, 2], rtol=1e-5)
    assert target[:, 2, 2].tolist() == [2, 0, 0, 2]
    assert (flair.dtype, atlas.dtype, target.dtype) == (np.float32, np.float32, np.uint8)


def test_joined_shards_have_the_channels_that_all_of_them_have():
    first, second = (shard(2, 2 * number, 4) for number in range(2))
    with_t1 = [
        Shard({**one.channels, "t1": -one.channels["flair"]}, one.target)
        for one in (first, second)
    ]
    joined = join_shards(with_t1)
    assert list(joined.channels) == ["flair", "atlas", "t1"]
    assert joined.channels["t1"][:, 0, 0].tolist() == [0, -1, -2, -3]
    assert SlicePool(with_t1).read([3, 1]).channels["t1"][:, 0, 0].tolist() == [-3, -1]
    assert list(join_shards([with_t1[0], second]).channels) == ["flair", "atlas"]


def test_shards_on_disk_come_back_in_the_order_of_their_names(tmp_path):
    write_shard(tmp_path / "pool", "b", shard(2, 2))
    write_shard(tmp_path / "pool", "a", shard(2, 0))
    pool = open_pool(tmp_path / "pool")
    read = pool.read(range(4))
    flair, atlas, target = *read.channels.values(), read.target
    assert flair[:, 7, 9].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(atlas[:, 7, 9] * 255, [0, 1, 2, 3], rtol=1e-5)
    assert target[:, 7, 9].tolist() == [0, 1, 2, 0]
    assert isinstance(pool.shards[0].channels["flair"], np.memmap)
    assert len(list((tmp_path / "pool").iterdir())) == 6


def test_shard_without_its_last_file_is_not_seen(tmp_path):
    write_shard(tmp_path, "a", shard(1, 0))
    write_shard(tmp_path, "b", shard(1, 0))
    (tmp_path / "b_target.npy").unlink()
    assert len(open_pool(tmp_path)) == 1


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no shard of slices; expected"):
        open_pool(tmp_path)


def test_slices_of_another_size_are_refused(tmp_path):
    write_shard(tmp_path, "a", shard(1, 0, size=64))
    with pytest.raises(UsageError, match=r"slices of \[\(64, 64\)\]; expected 200 x 200"):
        open_pool(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        (b"", "EOF: reading magic string"),
        (b"version https://git-lfs", "magic string is not correct"),
        (slice(None, 60), "EOF: reading array header"),
        (slice(None, -1), "mmap length is greater than file size"),
        (b"\x93NUMPY\x01\x00\x02\x00{(", "EOF in multi-line statement|Cannot parse header"),
    ],
)
@pytest.mark.parametrize("kind", ["flair", "atlas", "target"])
def test_damaged_file_of_a_shard_is_named(tmp_path, kind, content, said):
    write_shard(tmp_path, "a", shard(1, 0))
    write_shard(tmp_path, "b", shard(1, 0))
    path = tmp_path / f"b_{kind}.npy"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[content] if isinstance(content, slice) else content)
    elif kind == "target":  # its presence completes a shard: a link to nothing is still there
        path.symlink_to("nothing")
    way_out = r"copy the pool again, or remove b_\*\.npy and draw them again"
    with pytest.raises(
        UsageError, match=rf"b_{kind}\.npy: cannot be read \(.*({said}).*{way_out}"
    ):
        open_pool(tmp_path)


def test_pools_are_told_apart_by_their_shards():
    pools = [
        SlicePool([shard(3, 0), shard(2, 3)]),
        SlicePool([shard(2, 3), shard(3, 0)]),
        SlicePool([shard(3, 0)]),
        SlicePool([shard(3, 0), shard(1, 3)]),
        SlicePool([shard(3, 0), shard(2, 4)]),
    ]
    digests = [pool_digest(pool) for pool in pools]
    assert len(set(digests)) == len(pools)
    assert digests[0] == pool_digest(SlicePool([shard(3, 0), shard(2, 3)]))


def test_pool_on_disk_is_the_one_that_was_written(tmp_path):
    write_shard(tmp_path, "a", shard(2, 0))
    digest = pool_digest(open_pool(tmp_path))
    assert digest == pool_digest(open_pool(tmp_path))
    write_shard(tmp_path, "b", shard(2, 2))
    assert pool_digest(open_pool(tmp_path)) != digest


def test_origin_of_a_pool_is_described_as_far_as_it_is_known(tmp_path):
    pool = SlicePool([shard(3, 0), shard(2, 3)])
    assert read_origin(tmp_path) is None
    assert describe_pool(pool, {}) == {"slices": 5}
    claim_pool(tmp_path, {"seed": 4, "volumes_per_shard": 10})
    origin = read_origin(tmp_path)
    assert describe_pool(pool, origin) == {
        "seed": 4,
        "volumes_per_shard": 10,
        "slices": 5,
        "volumes": 20,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "pool.json: Input data was truncated"), ("[]", "pool.json: .* got `array`")],
)
def test_damaged_origin_is_refused(tmp_path, text, message):
    (tmp_path / "pool.json").write_text(text)
    with pytest.raises(UsageError, match=rf"{message}.*copy the pool again"):
        read_origin(tmp_path)


def test_target_takes_the_label_that_fills_half_of_a_pixel():
    reference = np.zeros((400, 400, 1), np.uint8)
    for label in (1, 2, 3, 4):
        reference[60 * label : 60 * label + 40, 100:140] = label
    plane = SlicePlane(reference.shape, (0.5, 0.5), (199.5, 199.5))
    target = target_slices(reference, plane)
    assert np.bincount(target.ravel(), minlength=6)[1:].tolist() == [400, 400, 400, 400, 0]
    for label in (1, 2, 3, 4):
        assert (target[0, 30 * label : 30 * label + 20, 50:70] == label).all()


@pytest.mark.parametrize("length_mm", [150, 220])
def test_training_slices_are_those_of_the_network_input(length_mm):
    rng = np.random.default_rng(0)
    flair = rng.random((70, 120, 6)).astype(np.float32)
    brain = np.zeros(flair.shape, bool)
    brain[10:60, 5 : 5 + length_mm // 2, 1:4] = True
    reference = np.zeros(flair.shape, np.uint8)
    reference[30:34, 40:44, 2] = 1
    inputs = network_input(Image(flair, np.diag([2, 2, 5, 1])), brain, flair)
    result = training_shard(inputs, reference)
    margin = (inputs.plane.size - 200) // 2
    window = (slice(1, 4), slice(margin, margin + 200), slice(margin, margin + 200))
    np.testing.assert_array_equal(result.channels["flair"], inputs.channels["flair"][window])
    np.testing.assert_array_equal(result.channels["atlas"], inputs.channels["atlas"][window])
    assert result.target.sum(axis=(1, 2)).tolist() == [0, 64, 0]
