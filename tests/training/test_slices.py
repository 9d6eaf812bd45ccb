"""Training on pools of slices: learns, resumes to the step, exports what was judged."""

import csv
import hashlib
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from network_spy import loaded
from still_slices import STILL

from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.network.slices import network_input
from bagau_bids.network.weights import load_weights, save_weights
from bagau_bids.spaces import Image
from bagau_bids.synthesis.pool import Shard, SlicePool, training_shard
from bagau_bids.training import optimisation, slices
from bagau_bids.training.checkpoint import CHECKPOINT
from bagau_bids.training.settings import LoopSettings, TrainingSettings
from bagau_bids.training.slices import (
    ScanScore,
    SliceTrainer,
    TrainingData,
    count_steps,
    draw_batch,
    draw_weights,
    network_of,
    validate,
)

QUICK = TrainingSettings(
    width="small", batch_size=3, micro_batch_size=2, steps=4, crop=(32, 32), precision="float32"
)
CPU = LoopSettings(device="cpu", validate_every=2, log_every=1)


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    monkeypatch.setitem(slices.WIDTHS, "small", (4, 4, 6, 6, 8))


def training_scan():
    rng = np.random.default_rng(0)
    brain = np.zeros((40, 44, 5), bool)
    brain[5:35, 4:40, 1:4] = True
    reference = np.zeros(brain.shape, np.uint8)
    reference[15:20, 15:22, 1:4] = 1
    flair = rng.normal(100, 5, brain.shape).astype(np.float32) + 40 * reference
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    inputs = network_input(Image(flair, affine), brain, brain.astype(np.float32))
    return TrainingScan("sub-1_FLAIR", "1", 0, inputs, brain, reference, affine, "sub-1_FLAIR_0a")


@pytest.fixture
def data():
    scan = training_scan()
    return TrainingData.of_scans([scan], [scan])


def trainer(settings, data, folder, **loop_settings):
    folder.mkdir(exist_ok=True)
    return SliceTrainer(settings, replace(CPU, **loop_settings), data, folder, {"licence": "L"})


def rows(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_learns_an_easy_task(data, tmp_path):
    settings = replace(QUICK, steps=30, learning_rate=1e-2, loss="tversky+ce")
    made = trainer(settings, data, tmp_path / "o", validate_every=10)
    made.run()
    scores = made.best_scores()
    assert scores[0].dice > 0.5
    assert scores[0].reference_ml == pytest.approx(0.525)
    losses = [float(row["loss"]) for row in rows(tmp_path / "o" / "training.csv")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2


def test_output_folder(data, tmp_path):
    trainer(QUICK, data, tmp_path / "o").run()
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "best.json",
        "best.safetensors",
        "checkpoint.pt",
        "curves.png",
        "last.json",
        "last.safetensors",
        "training.csv",
        "validation.csv",
    ]
    card = load_weights(tmp_path / "o" / "best.safetensors").card.content
    assert card["licence"] == "L"
    assert card["recipe"]["learning_rate"] == 2e-4
    assert card["recipe"]["augmentation"]["rotation_deg"] == 15
    assert card["validation"][0]["scan"] == "sub-1_FLAIR"
    validated = [int(row["step"]) for row in rows(tmp_path / "o" / "validation.csv")]
    assert validated == [2, 4]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resumed_training_is_the_uninterrupted_one(data, tmp_path, ema):
    settings = replace(QUICK, ema_decay=ema, schedule="cosine")
    whole = trainer(settings, data, tmp_path / "whole")
    whole.run()
    first = trainer(settings, data, tmp_path / "parts")
    for _ in range(3):
        first.train_step()
        if first.step == 2:
            first.save_checkpoint()
            first.write_log()
    first.write_log()  # a line beyond the checkpoint
    second = trainer(settings, data, tmp_path / "parts")
    second.resume()
    assert second.step == 2
    second.run()
    for name, value in whole.learners[0].judged.state_dict().items():
        torch.testing.assert_close(second.learners[0].judged.state_dict()[name], value)
    steps = [int(row["step"]) for row in rows(tmp_path / "parts" / "training.csv")]
    assert steps == [2, 3, 4]


def test_resuming_with_another_recipe_is_refused(data, tmp_path):
    trainer(QUICK, data, tmp_path / "o").save_checkpoint()
    other = trainer(replace(QUICK, learning_rate=1.0), data, tmp_path / "o")
    with pytest.raises(UsageError, match=r"other settings \(learning_rate: 0.0002 not 1.0\)"):
        other.resume()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1, 0.1, 0.1, 0.1, 0.1]),
        # Half a cosine wave from the full rate down to a hundredth of it.
        ("cosine", [0.1, 0.0855, 0.0505, 0.0155, 0.001]),
    ],
)
def test_learning_rate_follows_its_schedule(data, tmp_path, schedule, expected):
    settings = replace(QUICK, steps=8, learning_rate=0.1, schedule=schedule)
    made = trainer(settings, data, tmp_path / "o")
    used = []
    for made.step in (0, 2, 4, 6, 8):
        made.train_step()
        used.append(made.learners[0].optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(used, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adamw", 4 * (1 - 0.1 * 0.5)),  # the decay shrinks a weight by its share
        ("adam", 4 - 0.1),  # the decay is a gradient like others, and its step has a set length
    ],
)
def test_weight_decay_is_that_of_the_optimizer(data, tmp_path, optimizer, expected):
    settings = replace(QUICK, optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)
    made = trainer(settings, data, tmp_path / "o")
    weight = made.learners[0].model.head.weight
    with torch.no_grad():
        weight.fill_(4.0)
    weight.grad = torch.zeros_like(weight)
    made.learners[0].optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, expected))


@pytest.mark.parametrize(
    ("precision", "side", "expected"),
    [
        ("auto", 80, torch.bfloat16),
        ("float32", 80, torch.float32),
        ("auto", 32, torch.float32),  # two pixels at the fifth level, below kernels of five
    ],
)
def test_precision_of_the_network(data, tmp_path, monkeypatch, precision, side, expected):
    monkeypatch.setattr(optimisation, "working_precision", lambda device: torch.bfloat16)
    settings = replace(QUICK, precision=precision, crop=(side, side))
    made = trainer(settings, data, tmp_path / "o")
    computed = []
    made.learners[0].model.head.register_forward_hook(
        lambda *given: computed.append(given[-1].dtype)
    )
    made.train_step()
    assert set(computed) == {expected}
    assert {weight.dtype for weight in made.learners[0].model.parameters()} == {torch.float32}


class Pointwise(torch.nn.Module):
    """No pixel or slice depends on another, so parts of a batch are what the whole is."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Conv2d(2, 1, 1)
        torch.nn.init.constant_(self.head.weight, 0.3)
        torch.nn.init.constant_(self.head.bias, -0.2)

    def forward(self, flair, atlas):
        return self.head(torch.cat((flair, atlas), dim=1))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 5, 6])
def test_gradients_of_micro_batches_add_up_to_that_of_the_batch(
    data, tmp_path, monkeypatch, micro_batch_size
):
    monkeypatch.setattr(slices, "network_of", lambda settings: Pointwise())
    monkeypatch.setattr(slices, "in_training", loaded)
    settings = replace(
        QUICK,
        batch_size=5,
        micro_batch_size=micro_batch_size,
        synthetic_fraction=0.4,
        false_negative_weight=0.2,
        synthetic_false_negative_weight=0.9,
        crop=(200, 200),
    )
    both = replace(data, synthetic=data.real)
    made = trainer(settings, both, tmp_path / "o")
    made.augmentation = STILL
    found = []
    made.learners[0].optimizer.register_step_pre_hook(
        lambda *_: found.append([one.grad.clone() for one in made.learners[0].model.parameters()])
    )
    made.train_step()

    batch, weights = draw_batch(both, settings, 0), torch.from_numpy(draw_weights(settings, 0))
    assert len(set(weights.tolist())) == 2
    oracle = Pointwise()
    flair, atlas, truth = (
        torch.from_numpy(one)[:, None].float() for one in (*batch.channels.values(), batch.target)
    )
    assert truth.any()
    probability = oracle(flair, atlas).sigmoid()
    hit = (probability * truth).sum((1, 2, 3))
    missed = ((1 - probability) * truth).sum((1, 2, 3))
    invented = (probability * (1 - truth)).sum((1, 2, 3))
    wrong = weights * missed + (1 - weights) * invented
    (1 - (hit + 1) / (hit + wrong + 1)).sum().div(5).backward()
    for mine, one in zip(found[0], oracle.parameters(), strict=True):
        torch.testing.assert_close(mine, one.grad, rtol=1e-4, atol=1e-7)


def judge_with(monkeypatch, dices):
    """Let validations give these Dice one after another; return the networks judged."""
    judged, left = [], iter(dices)

    def validate(network, scans, device):
        judged.append(network.model)
        return [ScanScore("sub-1_FLAIR", next(left), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)]

    monkeypatch.setattr(slices, "validate", validate)
    return judged


def test_best_weights_are_those_of_the_best_validation(data, tmp_path, monkeypatch):
    judge_with(monkeypatch, [0.3, 0.6, 0.4])
    made = trainer(replace(QUICK, steps=6), data, tmp_path / "o", keep_validated=True)
    made.run()
    (score,) = made.best_scores()
    assert score.dice == 0.6
    best = load_weights(tmp_path / "o" / "best.safetensors")
    assert best.card.content["recipe"]["step"] == 4
    kept = load_weights(tmp_path / "o" / "step-000004.safetensors").model
    for name, value in kept.state_dict().items():
        assert torch.equal(best.model.state_dict()[name], value), name


def test_moving_average_is_what_is_judged_and_exported(data, tmp_path, monkeypatch):
    judged = judge_with(monkeypatch, [0.5, 0.6])
    settings = replace(QUICK, ema_decay=0.15, learning_rate=0.05)
    made = trainer(settings, data, tmp_path / "o")
    expected, step = made.learners[0].model.head.weight.detach().clone(), made.train_step

    def step_and_average():
        decay = min(0.15, (1 + made.step) / (10 + made.step))
        step()
        expected.mul_(decay).add_(made.learners[0].model.head.weight.detach(), alpha=1 - decay)

    monkeypatch.setattr(made, "train_step", step_and_average)
    made.run()
    assert judged == [made.learners[0].average, made.learners[0].average]
    assert (expected - made.learners[0].model.head.weight).abs().max() > 5e-3
    for name in ("best", "last"):
        stored = load_weights(tmp_path / "o" / f"{name}.safetensors").model
        torch.testing.assert_close(
            stored.head.weight.detach(), expected, atol=1e-3, rtol=1e-3
        )  # stored in half precision


def other_data(data, what):
    """The same data but for one thing, and what the message says of it."""
    (scan,) = data.validation
    changed = replace(scan, key="sub-1_FLAIR_0b")
    real = data.real.read(range(3))
    return {
        "training": (
            TrainingData.of_scans([changed], [scan]),
            "training: sub-1_FLAIR_0a not sub-1_FLAIR_0b",
        ),
        "validation": (
            TrainingData.of_scans([scan], [scan, changed]),
            "validation: none not sub-1_FLAIR_0b",
        ),
        "pool": (replace(data, synthetic=SlicePool([real])), "synthetic_pool: None not [0-9a-f]+"),
    }[what]


@pytest.mark.parametrize("what", ["training", "validation", "pool"])
def test_resuming_on_other_data_is_refused(data, tmp_path, what):
    trainer(QUICK, data, tmp_path / "o").save_checkpoint()
    other, message = other_data(data, what)
    with pytest.raises(UsageError, match=rf"checkpoint.pt: made with other data \({message}\)"):
        trainer(QUICK, other, tmp_path / "o").resume()


def weights_file(folder, name, seed):
    path = folder / f"{name}.safetensors"
    save_weights(path, network_of(replace(QUICK, seed=seed)), {})
    return path


def test_card_of_a_resumed_training_names_the_weights_it_started_from(data, tmp_path):
    first = weights_file(tmp_path, "first", 5)
    begun = trainer(QUICK, data, tmp_path / "o")
    begun.start_from([first])
    begun.save_checkpoint()
    resumed = trainer(QUICK, data, tmp_path / "o")
    resumed.resume()
    resumed.run()
    card = load_weights(tmp_path / "o" / "last.safetensors").card.content
    assert card["initial_weights"] == "first.safetensors"
    assert card["initial_weights_sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()


def test_resuming_from_other_weights_is_refused(data, tmp_path):
    first, second = (weights_file(tmp_path, name, n) for n, name in enumerate(("a", "b")))
    digest, other = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second))
    begun = trainer(QUICK, data, tmp_path / "o")
    begun.start_from([first])
    begun.save_checkpoint()
    trainer(QUICK, data, tmp_path / "o").resume([first])
    message = rf"made with other initial weights \(SHA-256: {digest} not {other}\)"
    with pytest.raises(UsageError, match=message):
        trainer(QUICK, data, tmp_path / "o").resume([second])
    trainer(QUICK, data, tmp_path / "plain").save_checkpoint()
    with pytest.raises(UsageError, match=rf"\(SHA-256: None not {digest}\)"):
        trainer(QUICK, data, tmp_path / "plain").resume([first])


def test_checkpoint_of_another_version_is_refused(data, tmp_path):
    trainer(QUICK, data, tmp_path / "o").save_checkpoint()
    path = tmp_path / "o" / CHECKPOINT
    state = torch.load(path, weights_only=True)
    del state["learners"]
    torch.save(state, path)
    with pytest.raises(UsageError, match=f"{path}: the state of a training of another version"):
        trainer(QUICK, data, tmp_path / "o").resume()


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_lost_calibration_of_initial_weights_is_told(data, tmp_path, caplog, threshold):
    path = tmp_path / "init.safetensors"
    save_weights(path, network_of(QUICK), {"calibration": {"threshold": threshold}})
    made = trainer(QUICK, data, tmp_path / "o")
    made.start_from([path])
    told = f"{path}: their operating point of 0.80 is not taken over"
    assert (told in caplog.text) == (threshold == 0.8)
    assert ("'bagau calibrate' sets another" in caplog.text) == (threshold == 0.8)


def test_more_steps_may_be_asked_for_on_resuming(data, tmp_path):
    trainer(QUICK, data, tmp_path / "o").save_checkpoint()
    trainer(replace(QUICK, steps=9), data, tmp_path / "o").resume()


def test_sigterm_saves_and_stops(data, tmp_path, monkeypatch):
    made = trainer(replace(QUICK, steps=1000), data, tmp_path / "o")
    step = made.train_step

    def step_and_signal():
        if made.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step()

    monkeypatch.setattr(made, "train_step", step_and_signal)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ProcessingError, match="at step 3 of 1000: go on with --resume"):
        made.run()
    assert signal.getsignal(signal.SIGTERM) is before
    again = trainer(replace(QUICK, steps=1000), data, tmp_path / "o")
    again.resume()
    assert again.step == 3


def test_divergence_is_told(data, tmp_path, monkeypatch):
    made = trainer(QUICK, data, tmp_path / "o")
    with torch.no_grad():
        made.learners[0].model.head.weight.fill_(float("nan"))
    with pytest.raises(ProcessingError, match="the loss is nan at step 0: training diverged"):
        made.run()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e37, -1e30])
def test_a_gradient_that_is_none_ends_the_training_before_it_is_learned(data, tmp_path, value):
    made = trainer(QUICK, data, tmp_path / "o")
    made.train_step()
    made.save_checkpoint()
    weight = made.learners[0].model.head.weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, value))
    before = {name: one.clone() for name, one in made.learners[0].model.named_parameters()}
    kept = made.output_dir / CHECKPOINT
    told = (
        rf"gradient is \S+ at step 1, .* go on from {kept} with --resume and --precision float32"
    )
    with pytest.raises(ProcessingError, match=told):
        made.run()
    for name, one in made.learners[0].model.named_parameters():
        assert torch.equal(one, before[name]), name
    assert torch.load(kept, weights_only=True)["step"] == 1


def test_weights_of_every_validation_are_kept_where_wanted(data, tmp_path):
    trainer(replace(QUICK, steps=5), data, tmp_path / "o", keep_validated=True).run()
    kept = sorted(path.stem for path in (tmp_path / "o").glob("step-*.safetensors"))
    assert kept == ["step-000002", "step-000004", "step-000005"]
    last = load_weights(tmp_path / "o" / "step-000005.safetensors")
    exported = load_weights(tmp_path / "o" / "last.safetensors").model
    for name, value in exported.state_dict().items():
        assert torch.equal(last.model.state_dict()[name], value), name
    assert last.card.validation


def test_fine_tuning_starts_from_given_weights(data, tmp_path):
    torch.manual_seed(9)
    other = network_of(replace(QUICK, seed=5))
    save_weights(tmp_path / "init.safetensors", other, {})
    made = trainer(QUICK, data, tmp_path / "o")
    made.start_from([tmp_path / "init.safetensors"])
    given = load_weights(tmp_path / "init.safetensors").model
    for name, value in given.state_dict().items():
        torch.testing.assert_close(made.learners[0].model.state_dict()[name], value)


def test_a_wider_network_starts_with_the_function_of_the_narrow_one(data, tmp_path, monkeypatch):
    monkeypatch.setitem(slices.WIDTHS, "full", (8, 8, 12, 12, 16))
    narrow = network_of(QUICK).eval()
    save_weights(tmp_path / "init.safetensors", narrow, {})
    made = trainer(replace(QUICK, width="full"), data, tmp_path / "o")
    made.start_from([tmp_path / "init.safetensors"])
    flair, atlas = torch.randn(1, 1, 32, 32), torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        expected, found = narrow(flair, atlas), made.learners[0].model.eval()(flair, atlas)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)  # stored in half precision


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"width": "full"}, "is no multiple of"),
        ({"ablations": ("mam",)}, "differ in more than their widths"),
        ({"architecture": "unet"}, "differ in more than their widths"),
    ],
)
def test_weights_of_another_network_are_refused(data, tmp_path, monkeypatch, other, reason):
    monkeypatch.setitem(slices.WIDTHS, "full", (4, 4, 6, 6, 10))
    save_weights(tmp_path / "init.safetensors", network_of(replace(QUICK, **other)), {})
    with pytest.raises(UsageError, match=reason) as told:
        trainer(QUICK, data, tmp_path / "o").start_from([tmp_path / "init.safetensors"])
    assert "change --width, --architecture or --ablation" in str(told.value)


def test_a_u_net_with_the_atlas_does_not_start_from_one_without(data, tmp_path):
    unet = replace(QUICK, architecture="unet")
    alone = network_of(replace(unet, inputs=("flair",)))
    save_weights(tmp_path / "init.safetensors", alone, {})
    with pytest.raises(UsageError, match="differ in more than their widths"):
        trainer(unet, data, tmp_path / "o").start_from([tmp_path / "init.safetensors"])


def test_ablations_and_inputs():
    both = network_of(replace(QUICK, ablations=("mam", "afm")))
    assert (both.config.mam, both.config.afm) == (False, False)
    unet = network_of(replace(QUICK, architecture="unet", inputs=("t1", "flair")))
    assert unet.inputs == ("flair", "t1")
    with pytest.raises(UsageError, match="--ablation mam: expected --architecture bagau_net"):
        network_of(replace(QUICK, architecture="unet", ablations=("mam",)))
    with pytest.raises(UsageError, match=r"--inputs flair t1: bagau_net has flair and atlas"):
        network_of(replace(QUICK, inputs=("flair", "t1")))


def test_network_with_t1_learns_from_it_alone(tmp_path):
    """The lesion shows on the T1w only: what is learned came through the T1 channel."""
    scan = training_scan()
    flair = scan.inputs.channels["flair"]
    blind, t1 = np.zeros_like(flair), -flair
    scan = replace(scan, inputs=scan.inputs.with_channels(flair=blind, t1=t1))
    data = TrainingData(SlicePool([training_shard(scan.inputs, scan.reference)]), None, [scan])
    settings = replace(
        QUICK,
        architecture="unet",
        inputs=("flair", "t1"),
        steps=30,
        learning_rate=1e-2,
        loss="tversky+ce",
    )
    made = trainer(settings, data, tmp_path / "o", validate_every=10)
    made.run()
    scores = made.best_scores()
    assert scores[0].dice > 0.5
    card = load_weights(tmp_path / "o" / "best.safetensors").card.content
    assert card["inputs"] == ["flair", "t1"]


def test_a_network_of_the_atlas_is_given_it_alone_of_slices_with_a_t1(tmp_path):
    scan = training_scan()
    t1 = -scan.inputs.channels["flair"]
    scan = replace(scan, inputs=scan.inputs.with_channels(**scan.inputs.channels, t1=t1))
    data = TrainingData(SlicePool([training_shard(scan.inputs, scan.reference)]), None, [scan])
    made = trainer(QUICK, data, tmp_path / "o")
    given, target = made._varied(made.draw()[0], torch.Generator())
    assert {name: tuple(one.shape) for name, one in given.items()} == dict.fromkeys(
        ("flair", "atlas"), (3, 1, 32, 32)
    )
    assert target.shape == (3, 1, 32, 32)


def test_no_two_steps_of_any_seeds_vary_their_slices_alike(data, tmp_path, monkeypatch):
    seeds = []
    for seed in range(3):
        made = trainer(replace(QUICK, seed=seed), data, tmp_path / f"{seed}")

        def varied(slices, generator):
            seeds.append(generator.initial_seed())
            raise InterruptedError

        monkeypatch.setattr(made, "_varied", varied)
        for made.step in range(3):
            with pytest.raises(InterruptedError):
                next(made.losses(made.learners[0], made.draw()))
    assert len(seeds) == len(set(seeds)) == 9


def test_checkpoint_from_before_a_setting_existed_is_resumed(data, tmp_path):
    made = trainer(QUICK, data, tmp_path / "o")
    made.save_checkpoint()
    path = tmp_path / "o" / CHECKPOINT
    state = torch.load(path, weights_only=True)
    del state["settings"]["inputs"]
    torch.save(state, path)
    trainer(QUICK, data, tmp_path / "o").resume()


def numbered(count, first):
    slices = np.arange(first, first + count)[:, None, None] * np.ones((1, 2, 2))
    channels = dict.fromkeys(("flair", "atlas"), slices.astype("f4"))
    return SlicePool([Shard(channels, slices.astype("u1"))])


def test_batches_hold_the_asked_share_of_synthetic_slices():
    data = TrainingData(numbered(7, 0), numbered(50, 100), [])
    settings = replace(QUICK, batch_size=5, synthetic_fraction=0.3)
    drawn = [draw_batch(data, settings, step).channels["flair"][:, 0, 0] for step in range(40)]
    assert {len(batch) for batch in drawn} == {5}
    everything = np.concatenate(drawn)
    assert np.count_nonzero(everything >= 100) == 60
    real = everything[everything < 100].astype(int)
    counts = np.bincount(real, minlength=7)
    assert counts.min() == counts.max() == 20  # 140 slices are 20 passes over 7


def test_synthetic_slices_have_their_own_weight_of_missed_lesions():
    data = TrainingData(numbered(7, 0), numbered(50, 100), [])
    settings = replace(
        QUICK,
        batch_size=5,
        synthetic_fraction=0.3,
        false_negative_weight=0.25,
        synthetic_false_negative_weight=0.75,
    )
    for step in range(10):
        synthetic = draw_batch(data, settings, step).channels["flair"][:, 0, 0] >= 100
        np.testing.assert_allclose(
            draw_weights(settings, step), np.where(synthetic, 0.75, 0.25), atol=1e-6
        )
    same = replace(settings, synthetic_false_negative_weight=None)
    np.testing.assert_allclose(draw_weights(same, 3), 0.25, atol=1e-6)


def test_a_step_draws_the_same_whenever_it_is_asked():
    data = TrainingData(numbered(7, 0), numbered(50, 100), [])
    settings = replace(QUICK, synthetic_fraction=0.5)
    first = draw_batch(data, settings, 11)
    draw_batch(data, settings, 3)
    again = draw_batch(data, settings, 11)
    np.testing.assert_equal(first.channels, again.channels)
    np.testing.assert_array_equal(first.target, again.target)


def test_epochs_are_passes_over_the_real_slices():
    data = TrainingData(numbered(70, 0), None, [])
    settings = replace(QUICK, steps=None, epochs=200, batch_size=32)
    assert count_steps(settings, data) == 600
    assert count_steps(replace(settings, steps=5), data) == 5


def test_validation_is_at_native_resolution():
    class Bright(torch.nn.Module):
        def forward(self, flair, atlas):
            return torch.where(flair > 6, 9.0, -9.0)

    scan = training_scan()
    (score,) = validate(loaded(Bright()), [scan], torch.device("cpu"))
    assert score.dice == 1
    assert score.lesion_f1 == 1
    assert score.volume_difference_percent == 0
    assert score.hausdorff95_mm == 0
    ignored = replace(scan, reference=np.where(scan.reference == 1, 2, 0).astype(np.uint8))
    (score,) = validate(loaded(Bright()), [ignored], torch.device("cpu"))
    assert score.dice == 1  # nothing left to find, nothing found


def test_a_probability_of_one_half_is_a_lesion():
    class Undecided(torch.nn.Module):
        def forward(self, flair, atlas):
            return 0 * (flair + atlas)

    scan = training_scan()
    brain = replace(scan, reference=scan.brain_mask.astype(np.uint8))
    (score,) = validate(loaded(Undecided()), [brain], torch.device("cpu"))
    assert score.result_ml == score.reference_ml > 0
