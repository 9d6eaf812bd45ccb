"""Streaming training: what is stored is what was given, shares are kept, a training goes on."""

import csv
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from network_spy import loaded
from synthetic_heads import draw_coarsely, register_nothing, write_inputs

from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.network.bagau_net import BagauNet, BagauNetConfig
from bagau_bids.network.cards import Calibration
from bagau_bids.network.slices import network_input
from bagau_bids.network.weights import in_training, load_weights, save_weights
from bagau_bids.preprocessing.template import Template
from bagau_bids.spaces import Image
from bagau_bids.synthesis import heads
from bagau_bids.synthesis.pool import (
    BACKGROUND,
    HIDDEN_INFARCT,
    INFARCT,
    NOT_JUDGED,
    WMH,
    Shard,
)
from bagau_bids.training import drawing, judging, loop, pack, sources, stream, stroke
from bagau_bids.training.judging import HEALTHY, JudgedScan, fitting_threshold
from bagau_bids.training.settings import LoopSettings, StreamSettings
from bagau_bids.training.sources import (
    SliceStore,
    StoredSlices,
    StrokeSettings,
    StrokeSource,
)
from bagau_bids.training.stream import StreamTrainer, batch_counts, read_stream_data, with_outputs

CPU = torch.device("cpu")
QUICK = StreamSettings(
    steps=4,
    batch_size=4,
    crop=(32, 32),
    real_share=0.25,
    stroke_share=0.25,
    ring_slices=60,
    least_slices=4,
    synthetic_validation=1,
    warm_up_steps=2,
    validate_at=(0.5, 1.0),
    relabel_at=(0.5,),
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scan_of(subject, lesion=1, spacing=5.0):
    rng = np.random.default_rng(int(subject))
    brain = np.zeros((40, 44, 9), bool)
    brain[5:35, 4:40, 1:8] = True
    reference = np.zeros(brain.shape, np.uint8)
    reference[15:20, 15:22, 1:4] = lesion
    flair = rng.normal(100, 5, brain.shape).astype(np.float32) + 40 * (reference == 1)
    affine = np.diag([1.0, 1.0, spacing, 1.0])
    inputs = network_input(Image(flair, affine), brain, brain.astype(np.float32))
    name = f"sub-{subject}_FLAIR"
    return TrainingScan(name, subject, 0, inputs, brain, reference, affine, f"{name}_0a")


def write_slices(folder, count=12):
    """Slices of round brains, every third with an infarct at the left."""
    rng = np.random.default_rng(1)
    x, y = np.meshgrid(np.arange(157) - 78, np.arange(189) - 94, indexing="ij")
    brain = (x / 65) ** 2 + (y / 80) ** 2 < 1
    pattern = 90 + 20 * np.cos(x / 9) * np.cos(y / 11)
    flair = np.where(brain, pattern + rng.normal(0, 3, (count, 157, 189)), 0).astype(np.uint8)
    infarct = np.zeros(flair.shape, bool)
    infarct[::3, 30:45, 80:95] = True
    flair[infarct] = 220
    folder.mkdir(exist_ok=True)
    np.savez_compressed(
        folder / "slices.npz", flair=flair, infarct=infarct, ids=np.arange(count) + 7
    )
    return flair, infarct


def tiny_net(outputs=("wmh",), widths=(4, 4, 6, 6, 8)):
    torch.manual_seed(3)
    return BagauNet(BagauNetConfig(widths=widths, outputs=outputs)).eval()


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    monkeypatch.setitem(stream.WIDTHS, "small", (4, 4, 6, 6, 8))
    monkeypatch.setitem(stream.WIDTHS, "full", (8, 8, 12, 12, 16))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        register_nothing(patch)
        (label_map, _), masks = write_inputs(folder)
        template = Template("Fake", folder / "t1w", folder / "wm", folder / "mask")
        heads.prepare_heads([label_map], template, masks, folder / "heads")
    write_slices(folder / "slices")
    white = np.full((181, 217, 40), 0.8, np.float32)
    affine = np.eye(4)
    affine[:3, 3] = -90, -126, 0
    arrays = stroke.stroke_arrays(folder / "slices", Image(white, affine))
    origin = pack.Origin(datasets=[{"Name": "T"}], template="Fake", registration="robust")
    pack.write_pack(
        folder / "pack",
        [scan_of("1"), scan_of("2", spacing=1.0)],
        [scan_of("3")],
        folder / "heads",
        arrays,
        origin,
    )
    return folder / "pack"


@pytest.fixture
def coarse(monkeypatch):
    draw_coarsely(monkeypatch)


# --- the pack


def test_flair_codes_keep_zero_and_half_a_step():
    z = np.concatenate([[0.0], np.linspace(-6, 10, 999)]).astype(np.float32)
    codes = pack.encode_flair(z)
    assert codes[0] == 0
    assert (codes[1:][z[1:] != 0] > 0).all()
    assert np.abs(pack.decode_flair(codes) - z).max() <= 16 / 254 / 2 + 1e-6
    on_device = sources.decode(torch.from_numpy(codes)).numpy()
    np.testing.assert_allclose(on_device, pack.decode_flair(codes), atol=1e-5)


def test_pack_gives_back_what_was_put_in(packed):
    (scan,) = pack.read_validation(packed)
    expected = scan_of("3")
    np.testing.assert_allclose(
        scan.inputs.channels["flair"], expected.inputs.channels["flair"], atol=0.04
    )
    np.testing.assert_allclose(
        scan.inputs.channels["atlas"], expected.inputs.channels["atlas"], atol=0.003
    )
    np.testing.assert_array_equal(scan.reference, expected.reference)
    np.testing.assert_array_equal(scan.brain_mask, expected.brain_mask)
    assert scan.inputs.plane == expected.inputs.plane
    first, second = pack.read_real(packed)
    assert (first.subject, len(first.slices)) == ("0-1", 7)
    assert len(second.slices) == 3  # one in every slab of 3 mm


def test_pack_is_not_written_over_another(packed, tmp_path):
    with pytest.raises(UsageError, match="holds a pack already"):
        pack.write_pack(packed, [], [], packed / "heads", None, {})
    with pytest.raises(UsageError, match="found no prepared head"):
        pack.write_pack(tmp_path / "new", [], [], tmp_path, None, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not there, expected a folder that 'bagau pack' wrote"),
        ("{", "pack.json: Input data was truncated; expected a pack of format 1, as 'bagau pack'"),
        ("[]", "Expected `object`, got `array`; expected a pack of format 1"),
        ('{"format": 99}', r"Invalid enum value 99 - at `\$.format`; expected a pack of format 1"),
        ('{"format": 1, "heads": [3]}', r"Expected `str`, got `int` - at `\$.heads\[0\]`; exp"),
        ('{"format": 1, "heads": []}', "missing required field `training`; expected a pack"),
    ],
)
def test_folder_that_is_no_pack_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "pack.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        pack.read_pack_file(tmp_path)


def test_damaged_part_of_a_pack_is_named(packed, tmp_path):
    (tmp_path / "pack.json").write_text((packed / "pack.json").read_text())
    (tmp_path / "stroke.npz").write_bytes(b"PK no archive")
    with pytest.raises(UsageError, match=r"stroke\.npz: cannot be read"):
        pack.read_stroke(tmp_path)


@pytest.mark.parametrize(
    ("part", "read"),
    [
        ("real/sub-1_FLAIR.npz", pack.read_real),
        ("validation/sub-3_FLAIR.npz", pack.read_validation),
        ("stroke.npz", pack.read_stroke),
    ],
)
def test_part_of_a_pack_that_is_damaged_or_lacks_an_array_is_named(packed, tmp_path, part, read):
    shutil.copytree(packed, tmp_path / "pack")
    path = tmp_path / "pack" / part
    with np.load(path) as stored:
        arrays = dict(stored)
    way_out = "expected what 'bagau pack' wrote; make or copy the pack again"
    for name in arrays:
        np.savez(path, **{other: array for other, array in arrays.items() if other != name})
        with pytest.raises(UsageError, match=rf"{part}: found no {name} in its .*, {way_out}"):
            read(tmp_path / "pack")
    for content in (b"", path.read_bytes()[:-9], b"text"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=rf"{part}: cannot be read \(.*\), {way_out}"):
            read(tmp_path / "pack")


# --- slices of stroke patients


def test_every_fifth_patient_by_number_is_held_out():
    ids = ["10", "9", "100", "3", "7", "8"]
    assert stroke.held_out_patients(ids).tolist() == [False, False, True, True, False, False]


def test_stroke_slices_are_brought_to_the_plane(tmp_path):
    flair, infarct = write_slices(tmp_path)
    ramp = np.broadcast_to(np.arange(40) / 40, (181, 217, 40)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, 3] = -90, -126, 0
    arrays = stroke.stroke_arrays(tmp_path, Image(ramp, affine))
    assert arrays["atlas"][:, 100, 100].tolist() == [
        round(mm / 40 * 255) for mm in range(12, 24, 2)
    ]
    np.testing.assert_array_equal(stroke.unpack_infarcts(arrays)[:, 21:178, 5:194], infarct)
    z = pack.decode_flair(arrays["flair"])
    inside = z[0, 21:178, 5:194][flair[0] > 0]
    assert abs(np.median(inside)) < 0.3


def test_slice_of_another_level_is_left_out(tmp_path):
    flair, infarct = write_slices(tmp_path)
    flair[4] = np.where(flair[4] > 0, 200 - flair[4], 0)  # the opposite pattern
    flair[7, :90] = 0  # half a brain
    ids = np.arange(len(flair))
    np.savez_compressed(tmp_path / "slices.npz", flair=flair, infarct=infarct, ids=ids)
    white, affine = np.ones((181, 217, 40), np.float32), np.eye(4)
    arrays = stroke.stroke_arrays(tmp_path, Image(white, affine))
    assert arrays["ids"].tolist() == [str(n) for n in ids if n not in (4, 7)]


def test_folder_without_slices_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"slices\.npz: cannot be read"):
        stroke.stroke_arrays(tmp_path, Image(np.ones((9, 9, 9)), np.eye(4)))
    np.savez(tmp_path / "slices.npz", flair=np.ones(2), ids=np.ones(2))
    with pytest.raises(UsageError, match="found no infarct in its .*; give their folder"):
        stroke.stroke_arrays(tmp_path, Image(np.ones((9, 9, 9)), np.eye(4)))


def stroke_source(probability, infarct, white=255):
    size = 200
    arrays = {
        "flair": np.full((2, size, size), 100, np.uint8),
        "infarct": np.packbits(np.broadcast_to(infarct, (2, size, size))),
        "atlas": np.full((6, size, size), white, np.uint8),
        "held_out": np.array([True, False]),
    }
    source = StrokeSource(arrays, StrokeSettings(), CPU)
    source.label(torch.tensor(probability, dtype=torch.float32)[None])
    return source


MIDDLE = np.abs(np.arange(200) - 99.5) <= 7


def test_infarcts_are_no_wmh_and_doubt_is_not_judged():
    probability = np.zeros((200, 200))
    probability[:50] = 0.9
    probability[50:80] = 0.4
    infarct = np.zeros((200, 200), bool)
    infarct[20:60, 100:150] = True  # large
    infarct[30:38, 20:28] = True  # small, in white matter, called WMH
    infarct[100:108, 20:28] = True  # small, in white matter, called nothing
    target = stroke_source(probability, infarct).target
    assert target.shape[0] == 1  # the other is held out
    expected = np.zeros((200, 200), np.uint8)
    expected[:50], expected[50:80] = WMH, NOT_JUDGED
    expected[20:60, 100:150] = INFARCT
    expected[30:38, 20:28] = HIDDEN_INFARCT
    expected[100:108, 20:28] = INFARCT
    np.testing.assert_array_equal(target[0].numpy(), expected)
    outside = stroke_source(probability, infarct, white=10).target[0].numpy()
    assert (outside[30:38, 20:28] == INFARCT).all()


def test_labels_are_renewed_by_the_mean_over_mirror_images():
    source = stroke_source(np.zeros((200, 200)), np.zeros((200, 200), bool))
    source.flair[:, :20] = 0

    def left_only(flair, atlas):
        probability = torch.zeros_like(flair)
        probability[:, :, :100] = 1
        probability[:, :, 40:100] = 0.9
        return probability

    source.label_by(left_only, shift=0.0)
    labels = source.target[0].numpy()
    assert (labels[:20] == 0).all()
    beside = labels[~MIDDLE]
    assert (beside[20:] == NOT_JUDGED).all()  # a half everywhere
    source.label_by(left_only, shift=-0.1)
    assert (source.target[0].numpy()[20:40] == WMH).all()


def test_what_networks_find_at_the_middle_is_no_wmh_but_an_infarct_there_stays():
    infarct = np.zeros((200, 200), bool)
    infarct[90:130, 50:90] = True
    target = stroke_source(np.ones((200, 200)), infarct).target[0].numpy()
    expected = np.full((200, 200), WMH, np.uint8)
    expected[MIDDLE] = BACKGROUND
    expected[infarct] = INFARCT
    np.testing.assert_array_equal(target, expected)
    np.testing.assert_array_equal(np.flatnonzero(MIDDLE), np.arange(93, 107))  # 7 mm each side


def test_networks_see_the_middle_that_holds_all_brains():
    source = stroke_source(np.zeros((200, 200)), np.zeros((200, 200), bool))
    source.flair[:, :30] = 0
    source.flair[:, 171:] = 0
    source.flair[:, :, :9] = 0
    source.flair[:, :, 150:] = 0
    seen = []

    def by_place(flair, atlas):
        seen.append((tuple(flair.shape), tuple(atlas.shape)))
        return (flair != 0).float()

    source.label_by(by_place, shift=0.0)
    assert set(seen) == {((1, 1, 144, 192), (1, 1, 144, 192))}
    labels = source.target[0].numpy()
    found = np.zeros((200, 200), bool)
    found[30:171, 9:150] = True
    expected = np.where(found & ~MIDDLE[:, None], WMH, BACKGROUND)
    np.testing.assert_array_equal(labels, expected)


def test_drawn_stroke_slices_come_with_a_bent_atlas(packed):
    source = StrokeSource(pack.read_stroke(packed), StrokeSettings(), CPU)
    batch = source.draw(6, generator())
    again = source.draw(6, generator())
    torch.testing.assert_close(batch.flair, again.flair)
    torch.testing.assert_close(batch.atlas, again.atlas)
    assert batch.atlas.shape == batch.flair.shape == (6, 1, 200, 200)


# --- the store


def test_store_overwrites_the_oldest():
    store = SliceStore(5, CPU)
    for first in (0, 3):
        values = np.arange(first, first + 3)[:, None, None] * np.ones((1, 200, 200))
        target = np.zeros(values.shape, np.uint8)
        channels = {"flair": values.astype(np.float32) / 2, "atlas": values / 10}
        store.add(StoredSlices.of(Shard(channels, target)))
    assert (len(store), store.added) == (5, 6)
    found = sorted(store.take(torch.arange(5)).flair[:, 0, 0, 0].tolist())
    np.testing.assert_allclose(found, [0.5, 1.0, 1.5, 2.0, 2.5], atol=0.04)


def test_lesions_weigh_one_over_their_pixels():
    target = np.zeros((2, 200, 200), np.uint8)
    target[0, 10:12, 10:15] = WMH
    target[0, 50, 50] = target[0, 51, 51] = WMH  # one lesion, by its corner
    target[1, 10:12, 10:15] = WMH  # not joined to the one of the slice before
    target[1, 80, 80] = INFARCT
    store = SliceStore(2, CPU)
    store.add(
        StoredSlices.of(Shard(dict.fromkeys(("flair", "atlas"), np.ones(target.shape)), target))
    )
    share = store.take(torch.arange(2)).lesion_share[:, 0]
    assert share[0, 11, 11] == pytest.approx(1 / 10, rel=0.03)
    assert share[1, 11, 11] == pytest.approx(1 / 10, rel=0.03)
    assert share[0, 50, 50] == pytest.approx(1 / 2, rel=0.03)


def test_subjects_are_equally_likely(packed):
    source = sources.RealSource(pack.read_real(packed), CPU)
    assert len(source.store) == 10
    totals = source.weights[:7].sum(), source.weights[7:].sum()
    assert totals[0] == pytest.approx(float(totals[1]))


def test_shares_of_a_batch_are_kept_over_the_steps():
    settings = replace(QUICK, batch_size=7, real_share=0.25, stroke_share=0.3)
    counts = np.array([batch_counts(settings, step, True, True) for step in range(400)])
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_allclose(
        counts.sum(axis=0), [7 * 400 * s for s in (0.45, 0.25, 0.3)], atol=1
    )
    assert batch_counts(settings, 5, False, False) == (7, 0, 0)


# --- judging


def test_threshold_is_where_the_volumes_of_all_styles_fit():
    def judged(style, voxels, values):
        scan = scan_of("4")
        reference = np.zeros(scan.reference.shape, np.uint8)
        reference.ravel()[:voxels] = 1
        probability = np.zeros(reference.shape, np.float32)
        probability.ravel()[: len(values)] = values
        return JudgedScan(replace(scan, reference=reference), style), probability

    descending = np.linspace(1, 0, 101)
    one, p_one = judged("a", 40, descending)  # fits at 0.6
    two, p_two = judged("b", 60, descending)  # fits at 0.4
    empty, p_empty = judged(HEALTHY, 0, np.ones(30))
    assert fitting_threshold([one, empty], [p_one, p_empty]) == pytest.approx(0.6, abs=0.051)
    assert fitting_threshold([two], [p_two]) == pytest.approx(0.4, abs=0.051)
    both = fitting_threshold([one, two], [p_one, p_two])
    assert 0.4 <= both <= 0.6
    assert fitting_threshold([empty], [p_empty]) == 0.5


def test_verdict_counts_infarcts_and_healthy_heads():
    class Says(torch.nn.Module):
        """WMH wherever the FLAIR is bright; infarct where it is brighter still."""

        def forward(self, flair, atlas):
            return torch.cat((8 * (flair - 2), 8 * (flair - 4)), dim=1)

    scan = scan_of("5")
    slices = judging.InfarctSlices(
        flair=pack.encode_flair(np.ones((2, 200, 200), np.float32)),
        infarct=np.zeros((2, 200, 200), bool),
        atlas=np.full((200, 200), 200, np.uint8),
    )
    slices.infarct[:, :10, :10] = True
    slices.flair[:, :10, :5] = pack.encode_flair(np.array(7.0))  # told
    slices.flair[:, :10, 5:7] = pack.encode_flair(np.array(2.6))  # called WMH
    slices.flair[:, 50:60, 50:60] = pack.encode_flair(np.array(2.6))  # WMH outside
    says = loaded(Says(), outputs=("wmh", "infarct"))
    verdict = judging.judge("net", says, [JudgedScan(scan, "a")], slices, CPU)
    by_scan = {line.scan: line for line in verdict.lines}
    infarcts = by_scan["net: infarcts"]
    assert infarcts.infarct_called_wmh == pytest.approx(0.2)
    assert infarcts.wmh_outside_cm2 == pytest.approx(1.0)
    assert infarcts.infarct_dice == pytest.approx(2 * 100 / (100 + 200))
    assert verdict.calibration.infarct_threshold == 0.5
    line = by_scan["net: sub-5_FLAIR"]
    assert verdict.score == pytest.approx(line.dice - 0.2)
    healthy = replace(scan, reference=np.zeros_like(scan.reference))
    both = judging.judge(
        "net", says, [JudgedScan(scan, "a"), JudgedScan(healthy, HEALTHY)], slices, CPU
    )
    found_ml = next(one.result_ml for one in both.lines if one.style == HEALTHY)
    assert found_ml > 0
    assert both.score == pytest.approx(both.lines[0].dice - 0.2 - found_ml / 10)


def test_infarcts_are_called_from_where_their_area_fits():
    """The infarct is told with 0.62 where it is, WMH with 0.55; around it with 0.4 and 0.3."""

    class Says(torch.nn.Module):
        def forward(self, flair, atlas):
            told = torch.where(flair > 4, 0.62, torch.where(flair > 2, 0.4, 0.01))
            wmh = torch.where(flair > 4, 0.55, torch.where(flair > 2, 0.3, 0.01))
            return torch.cat((wmh, told), dim=1).logit()

    flair = np.zeros((3, 200, 200), np.float32)
    flair[:, 20:60, 20:60], flair[:, 30:50, 30:50] = 3, 7
    slices = judging.InfarctSlices(
        pack.encode_flair(flair), flair > 4, np.full((200, 200), 200, np.uint8)
    )
    says = loaded(Says(), outputs=("wmh", "infarct"))
    scan = scan_of("5")
    healthy = JudgedScan(replace(scan, reference=np.zeros_like(scan.reference)), HEALTHY)
    fitted = judging.judge("net", says, [healthy], slices, CPU)
    assert 0.4 < fitted.calibration.infarct_threshold <= 0.62
    assert fitted.lines[-1].infarct_dice == pytest.approx(1)
    assert fitted.lines[-1].infarct_called_wmh == 0
    wide = Calibration(threshold=0.25, infarct_threshold=0.35)
    given = judging.judge("net", says, [healthy], slices, CPU, wide)
    assert given.calibration == wide
    # Moved to one half, 0.55 is more of WMH than 0.62 is of infarct: odds of 3.7 and 3.0.
    assert given.lines[-1].infarct_called_wmh == 1
    assert given.lines[-1].infarct_dice == 0


# --- the training


def test_new_output_says_no_and_leaves_the_old_one_alone():
    net = tiny_net()
    flair, atlas = torch.randn(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    more = with_outputs(net, ("wmh", "infarct"))
    torch.testing.assert_close(more(flair, atlas)[:, :1], net(flair, atlas))
    assert (more(flair, atlas)[:, 1].sigmoid() < 0.5).all()
    same = with_outputs(more, ("wmh", "infarct"))
    torch.testing.assert_close(same(flair, atlas), more(flair, atlas))


def made(settings, packed, folder, **more):
    folder.mkdir(exist_ok=True)
    data = read_stream_data(packed, settings, CPU)
    running = LoopSettings(log_every=50, **more)
    return StreamTrainer(settings, running, data, folder, {"licence": "L"}, device=CPU)


def rows(path):
    with path.open() as stream_:
        return list(csv.DictReader(stream_))


@pytest.mark.usefixtures("coarse")
def test_training_of_two_widths_is_judged_exported_and_resumed(packed, tmp_path):
    settings = replace(QUICK, widths=("small", "full"), label_levels=(0.7, 0.4))
    save_weights(tmp_path / "start.safetensors", tiny_net(), {"name": "start"})
    trainer = made(settings, packed, tmp_path / "out")
    trainer.start_from([tmp_path / "start.safetensors"])
    assert (trainer.data.stroke.target == NOT_JUDGED).all()
    trainer.label_stroke([in_training(tiny_net())])
    assert (trainer.data.stroke.target == INFARCT).any()
    trainer.run()
    judged = rows(tmp_path / "out" / "validation.csv")
    assert {row["step"] for row in judged} == {"2", "4"}
    assert {row["scan"] for row in judged if row["step"] == "2"} == {
        f"{width}: {scan}"
        for width in settings.widths
        for scan in ("sub-3_FLAIR", "synthetic-00", "healthy-00", "infarcts")
    }
    card = load_weights(tmp_path / "out" / "full-best.safetensors").card.content
    assert card["config"]["outputs"] == ["wmh", "infarct"]
    assert card["calibration"]["threshold"] == trainer.learners[1].threshold
    assert card["recipe"]["slices_seen"] in (8, 16)
    assert card["recipe"]["stroke"]["wmh"] == 0.7
    assert card["recipe"]["stroke"]["doubtful"] == 0.4
    assert card["initial_weights"] == "start.safetensors"
    assert (tmp_path / "out" / "curves.png").is_file()

    longer = replace(settings, steps=6, validate_at=(1.0,))
    again = made(longer, packed, tmp_path / "out")
    again.resume()
    assert torch.equal(again.data.stroke.target, trainer.data.stroke.target)
    assert again.step == 4
    assert again.scans_before > 0
    before = {k: v.clone() for k, v in again.learners[0].model.state_dict().items()}
    again.run()
    assert again.step == 6
    after = again.learners[0].model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    other = made(replace(longer, learning_rate=1e-5), packed, tmp_path / "out")
    with pytest.raises(UsageError, match="learning_rate"):
        other.resume()


@pytest.mark.usefixtures("coarse")
def test_training_ends_by_the_clock(packed, tmp_path, monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    settings = replace(QUICK, steps=None, seconds=12.0, validate_at=(1.0,), relabel_at=())
    trainer = made(settings, packed, tmp_path / "out")
    trainer.run()
    assert 3 <= trainer.step <= 12
    assert trainer.elapsed >= 12


@pytest.mark.usefixtures("coarse")
def test_the_log_tells_how_much_of_the_time_slices_are_waited_for(packed, tmp_path, monkeypatch):
    """A clock that runs only while a batch is drawn (3 s) and learned from (1 s)."""
    now = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def taking(seconds, what):
        def slow(*args):
            now[0] += seconds
            return what(*args)

        return slow

    trainer = made(replace(QUICK, validate_at=(1.0,), relabel_at=()), packed, tmp_path / "out")
    monkeypatch.setattr(trainer, "draw", taking(3, trainer.draw))
    (learner,) = trainer.learners
    monkeypatch.setattr(learner, "learn", taking(1, learner.learn))
    trainer.run()
    shares = [float(row["waiting_share"]) for row in rows(tmp_path / "out" / "training.csv")]
    assert shares
    assert shares == pytest.approx([0.75] * len(shares))


def test_both_or_no_ending_is_refused(packed, tmp_path):
    with pytest.raises(UsageError, match="expected one of them"):
        made(replace(QUICK, steps=None), packed, tmp_path / "a")
    with pytest.raises(UsageError, match="expected one of them"):
        made(replace(QUICK, seconds=5.0), packed, tmp_path / "b")


@pytest.mark.usefixtures("coarse")
def test_gradient_that_is_no_number_ends_the_training(packed, tmp_path):
    trainer = made(QUICK, packed, tmp_path / "out")
    with torch.no_grad():
        next(trainer.learners[0].model.parameters()).fill_(float("nan"))
    with pytest.raises(ProcessingError, match="loss or gradient of small was no number"):
        trainer.run()
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_weights_that_do_not_fit_are_refused(packed, tmp_path):
    save_weights(tmp_path / "odd.safetensors", tiny_net(widths=(5, 5, 7, 7, 9)), {"name": "odd"})
    trainer = made(QUICK, packed, tmp_path / "out")
    with pytest.raises(UsageError, match=r"--init .*odd\.safetensors"):
        trainer.start_from([tmp_path / "odd.safetensors"])
    with pytest.raises(UsageError, match="2 files for 1 widths"):
        trainer.start_from([tmp_path / "a", tmp_path / "b"])


# --- drawing


@pytest.mark.usefixtures("coarse")
def test_no_more_is_drawn_than_permitted(packed):
    store = SliceStore(100, CPU)
    drawn = drawing.Drawing(packed / "heads", store, seed=1)
    drawn.permit(2 * drawing.SLICES_OF_A_SCAN)
    drawn.start()
    try:
        deadline = threading.Event()
        while drawn.drawn < 2 and not deadline.wait(0.02):
            drawn.check()
        deadline.wait(0.3)
        assert drawn.drawn == 2
    finally:
        drawn.stop()
    expected = [
        len(shard)
        for shard in heads.synthetic_shards(
            heads.load_training_heads(packed / "heads"), range(2), 1
        )
    ]
    assert store.added == sum(expected)


def test_drawer_that_fails_is_reported(tmp_path):
    drawn = drawing.Drawing(tmp_path, SliceStore(4, CPU), seed=1)
    drawn.start()
    drawn._thread.join(10)
    with pytest.raises(ProcessingError, match="drawing synthetic slices failed"):
        drawn.check()
    drawn.stop()


@pytest.mark.slow
def test_processes_draw_with_one_thread_each(packed):
    store = SliceStore(200, CPU)
    drawn = drawing.Drawing(packed / "heads", store, seed=1, workers=2)
    drawn.permit(3 * drawing.SLICES_OF_A_SCAN)
    drawn.start()
    try:
        waiting = threading.Event()
        while drawn.drawn < 3 and not waiting.wait(0.05):
            drawn.check()
        assert len(store) >= 3
    finally:
        drawn.stop()
    assert all(not process.is_alive() for process in drawn._processes)


def test_as_many_slices_may_be_drawn_as_are_used_up():
    permitted = []
    trainer = SimpleNamespace(
        settings=StreamSettings(ring_slices=200, reuse=3.0),
        used=60,
        drawing=SimpleNamespace(permit=permitted.append),
        _passed=lambda shares, before: False,
    )
    StreamTrainer.after_step(trainer, 0.0)
    assert permitted == [200 / 2 + 60 / 3]
