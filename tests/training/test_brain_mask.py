"""The training of the brain-mask network: resumes to the step, and refuses what does not fit."""

import csv
from dataclasses import asdict, replace

import pytest
import torch
from synthetic_heads import affine, coarse, labels, write_inputs

from bagau_bids.cli import toolbox
from bagau_bids.errors import EXIT_OK, EXIT_USAGE, ProcessingError, UsageError
from bagau_bids.network.brain_unet import BrainUNetConfig, ConvPair
from bagau_bids.network.weights import load_weights
from bagau_bids.synthesis.labels import Head
from bagau_bids.training import brain_mask, optimisation
from bagau_bids.training.brain_mask import BrainTraining, train_brain_mask
from bagau_bids.training.checkpoint import CHECKPOINT

QUICK = BrainTraining(
    steps=4,
    warmup_steps=2,
    validate_every=2,
    validation_heads=1,
    sizes=((16, 16, 16),),
    workers=0,
    threads=1,
    device="cpu",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A tiny network, and thick slices of large pixels."""
    tiny = BrainUNetConfig(widths=(2, 2, 2))
    monkeypatch.setattr(brain_mask, "BrainUNetConfig", lambda: tiny)
    settings = coarse(brain_mask.brain_mask_settings(), 4.0)
    monkeypatch.setattr(brain_mask, "brain_mask_settings", lambda: settings)


@pytest.fixture(scope="module")
def head():
    return Head(labels(), affine())


class Stopped(Exception):
    pass


def stop(line):
    raise Stopped(line)


def begin(head, folder, training=QUICK):
    """Train to the first checkpoint, at step 2, and stop there."""
    with pytest.raises(Stopped, match="step=2"):
        train_brain_mask([head], [head], folder, training, report=stop)


def curve(folder):
    with (folder / "curve.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_resumed_training_is_the_uninterrupted_one(head, tmp_path):
    whole = train_brain_mask([head], [head], tmp_path / "whole", QUICK, report=print)
    begin(head, tmp_path / "parts")
    with (tmp_path / "parts" / "curve.csv").open("a") as stream:
        stream.write("3,9.9,0,0\n")  # a line beyond the checkpoint
    told = []
    resumed = train_brain_mask(
        [head], [head], tmp_path / "parts", QUICK, resume=True, report=told.append
    )
    assert told[0] == "resumed at step 2"
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert [row["step"] for row in curve(tmp_path / "whole")] == ["2", "4"]
    card = load_weights(tmp_path / "parts" / "brain.safetensors").card.content
    assert (card["name"], card["training"]["steps"]) == ("brain", 4)


def test_steps_change_the_weights(head, tmp_path):
    """What the comparison above would miss if nothing were learned."""
    begin(head, tmp_path / "o")
    first = torch.load(tmp_path / "o" / CHECKPOINT, weights_only=True)["model"]
    model = train_brain_mask([head], [head], tmp_path / "o", QUICK, resume=True, report=print)
    assert any(not torch.equal(first[name], v) for name, v in model.state_dict().items())


def test_training_is_not_overwritten(head, tmp_path):
    begin(head, tmp_path / "o")
    before = (tmp_path / "o" / CHECKPOINT).read_bytes()
    with pytest.raises(UsageError, match="holds a training; go on with --resume, or name another"):
        train_brain_mask([head], [], tmp_path / "o", QUICK)
    assert (tmp_path / "o" / CHECKPOINT).read_bytes() == before


def test_other_settings_are_refused_and_more_steps_are_not(head, tmp_path):
    begin(head, tmp_path / "o")
    other = replace(QUICK, seed=5, learning_rate=1e-3)
    message = r"made with other settings \(learning_rate: 0.0007 not 0.001, seed: 0 not 5\)"
    with pytest.raises(UsageError, match=message):
        train_brain_mask([head], [head], tmp_path / "o", other, resume=True)
    train_brain_mask([head], [head], tmp_path / "o", replace(QUICK, steps=5), resume=True)
    assert [row["step"] for row in curve(tmp_path / "o")] == ["2", "4", "5"]


def test_other_label_maps_are_refused(head, tmp_path):
    begin(head, tmp_path / "o")
    with pytest.raises(UsageError, match=r"made with other label maps \(held out: \w+ not \w+\)"):
        train_brain_mask([head], [], tmp_path / "o", QUICK, resume=True)
    changed = head.labels.copy()
    changed[22, 27, 24] = 0
    other = Head(changed, head.affine)
    with pytest.raises(UsageError, match=r"other label maps \(label maps: \w+ not \w+\)"):
        train_brain_mask([other], [head], tmp_path / "o", QUICK, resume=True)


def test_checkpoint_from_before_settings_were_kept_is_resumed_and_told(head, tmp_path):
    begin(head, tmp_path / "o")
    path = tmp_path / "o" / CHECKPOINT
    state = torch.load(path, weights_only=True)
    del state["settings"], state["data"]
    torch.save(state, path)
    told = []
    train_brain_mask([head], [], tmp_path / "o", QUICK, resume=True, report=told.append)
    assert "checkpoint.pt: does not say with which settings" in told[0]
    assert torch.load(path, weights_only=True)["settings"] == asdict(QUICK)


@pytest.mark.parametrize("value", [float("nan"), 1e9])
def test_a_gradient_that_is_none_is_not_hidden_by_the_clip(head, tmp_path, monkeypatch, value):
    begin(head, tmp_path / "o")
    kept = tmp_path / "o" / CHECKPOINT
    before = kept.read_bytes()
    loss = brain_mask.brain_loss
    monkeypatch.setattr(brain_mask, "brain_loss", lambda *given: poisoned(loss(*given), value))
    told = rf"gradient is \S+ at step 2, .* go on from {kept} with --resume and"
    with pytest.raises(ProcessingError, match=told):
        train_brain_mask([head], [head], tmp_path / "o", QUICK, resume=True)
    assert kept.read_bytes() == before


def poisoned(loss, value):
    """Let a loss keep its value and have another gradient."""
    loss.register_hook(lambda gradient: gradient * value)
    return loss


def test_a_loss_that_is_no_number_ends_the_training(head, tmp_path, monkeypatch):
    nan = torch.tensor(float("nan"))
    monkeypatch.setattr(brain_mask, "brain_loss", lambda logits, target: logits.sum() * nan)
    with pytest.raises(ProcessingError, match="the loss is nan at step 0: .* start again with"):
        train_brain_mask([head], [head], tmp_path / "o", QUICK)


@pytest.mark.parametrize(("side", "expected"), [(16, torch.float32), (32, torch.bfloat16)])
def test_heads_too_small_for_the_depth_are_computed_in_single_precision(
    head, tmp_path, monkeypatch, side, expected
):
    """Each of three levels halves the sides: 16 voxels end as two, below the largest kernel."""
    monkeypatch.setattr(optimisation, "working_precision", lambda device: torch.bfloat16)
    computed = set()
    forward = ConvPair.forward

    def noted(pair, image):
        if pair.training:
            computed.add(pair[0](image).dtype)
        return forward(pair, image)

    monkeypatch.setattr(ConvPair, "forward", noted)
    training = replace(QUICK, steps=1, sizes=((side,) * 3,))
    train_brain_mask([head], [], tmp_path / "o", training)
    assert computed == {expected}


def command(folder, *options):
    words = ["train-brain-mask", str(folder / "maps"), str(folder / "out"), "--device", "cpu"]
    return toolbox.main([*words, "--steps", "1", "--threads", "1", "--workers", "0", *options])


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(brain_mask, "BrainTraining", lambda **given: replace(QUICK, **given))
    write_inputs(tmp_path)
    assert command(tmp_path, "--held-out", "head2") == EXIT_OK
    assert (tmp_path / "out" / "brain.safetensors").is_file()
    assert "step=1" in capsys.readouterr().out
    assert command(tmp_path, "--held-out", "head2") == EXIT_USAGE
    assert "go on with --resume" in capsys.readouterr().err
    assert command(tmp_path, "--held-out", "head2", "--resume", "--random-seed", "3") == EXIT_USAGE
    assert "made with other settings (seed: 0 not 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--held-out", "head9"), "--held-out head9: found no such label map in"),
        (("--held-out", "head1", "head2"), "--held-out names every label map"),
    ],
)
def test_wrong_names_of_label_maps_are_refused(tmp_path, capsys, options, message):
    write_inputs(tmp_path)
    assert command(tmp_path, *options) == EXIT_USAGE
    assert message in capsys.readouterr().err


def test_folder_without_label_maps_is_refused(tmp_path, capsys):
    assert command(tmp_path) == EXIT_USAGE
    assert "maps: found no *.nii.gz file" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is there")
def test_gpu_that_is_not_there_is_refused(head, tmp_path):
    with pytest.raises(UsageError, match="--device cuda: PyTorch"):
        train_brain_mask([head], [], tmp_path / "o", replace(QUICK, device="cuda"))
