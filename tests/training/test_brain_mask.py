"""The training of the brain-mask network: resumes to the step, and refuses what does not fit."""

import csv
import os
import signal
from dataclasses import replace

import pytest
import torch
from synthetic_heads import affine, coarse, labels, write_inputs

from bagau_bids.cli import toolbox
from bagau_bids.errors import EXIT_OK, EXIT_USAGE, ProcessingError, UsageError
from bagau_bids.network.brain_unet import BrainUNetConfig, ConvPair
from bagau_bids.network.weights import load_weights
from bagau_bids.synthesis.labels import Head
from bagau_bids.training import brain_mask, optimisation
from bagau_bids.training.brain_mask import BrainMaskTrainer
from bagau_bids.training.checkpoint import CHECKPOINT
from bagau_bids.training.settings import BrainMaskSettings, LoopSettings

QUICK = BrainMaskSettings(steps=4, warm_up_steps=2, validation_heads=1, sizes=((16, 16, 16),))
CPU = LoopSettings(device="cpu", validate_every=2, workers=0)


def made(heads, held_out, folder, settings=QUICK, *, resume=False):
    folder.mkdir(exist_ok=True)
    trainer = BrainMaskTrainer(heads, held_out, folder, settings, CPU)
    if resume:
        trainer.resume()
    return trainer


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


def begin(head, folder):
    """Train to step 2, where a signal comes."""
    trainer = made([head], [head], folder)
    trainer.after_step = lambda before: trainer.step == 2 and os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(ProcessingError, match="stopped by a signal at step 2 of 4: go on with"):
        trainer.run()


def curve(folder):
    """Steps and losses, and steps and scores: what does not depend on the clock."""
    found = []
    for name, column in (("training.csv", "loss"), ("validation.csv", "dice")):
        with (folder / name).open() as stream:
            found += [(row["step"], row[column]) for row in csv.DictReader(stream)]
    return found


def test_resumed_training_is_the_uninterrupted_one(head, tmp_path):
    whole = made([head], [head], tmp_path / "whole")
    whole.run()
    begin(head, tmp_path / "parts")
    with (tmp_path / "parts" / "validation.csv").open("a") as stream:
        stream.write("3,held-out-00,0\n")  # a line beyond the checkpoint
    resumed = made([head], [head], tmp_path / "parts", resume=True)
    assert resumed.step == 2
    resumed.run()
    for name, value in whole.learners[0].average.state_dict().items():
        torch.testing.assert_close(resumed.learners[0].average.state_dict()[name], value)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert [step for step, _ in curve(tmp_path / "whole")] == ["2", "4", "2", "4"]
    card = load_weights(tmp_path / "parts" / "brain.safetensors").card.content
    assert (card["recipe"]["steps"], card["recipe"]["step"]) == (4, 4)
    assert (tmp_path / "parts" / "brain-best.safetensors").is_file()


def test_steps_change_the_weights(head, tmp_path):
    """What the comparison above would miss if nothing were learned."""
    begin(head, tmp_path / "o")
    state = torch.load(tmp_path / "o" / CHECKPOINT, weights_only=True)
    first = state["learners"]["brain"]["model"]
    trainer = made([head], [head], tmp_path / "o", resume=True)
    trainer.run()
    model = trainer.learners[0].model
    assert any(not torch.equal(first[name], v) for name, v in model.state_dict().items())


def test_other_settings_are_refused_and_more_steps_are_not(head, tmp_path):
    begin(head, tmp_path / "o")
    other = replace(QUICK, seed=5, learning_rate=1e-3)
    message = r"made with other settings \(learning_rate: 0.0007 not 0.001, seed: 0 not 5\)"
    with pytest.raises(UsageError, match=message):
        made([head], [head], tmp_path / "o", other, resume=True)
    made([head], [head], tmp_path / "o", replace(QUICK, steps=5), resume=True).run()
    assert [step for step, _ in curve(tmp_path / "o")] == ["2", "4", "5", "2", "4", "5"]


def test_other_label_maps_are_refused(head, tmp_path):
    begin(head, tmp_path / "o")
    with pytest.raises(UsageError, match=r"made with other data \(held out: \w+ not \w+\)"):
        made([head], [], tmp_path / "o", resume=True)
    changed = head.labels.copy()
    changed[22, 27, 24] = 0
    other = Head(changed, head.affine)
    with pytest.raises(UsageError, match=r"other data \(label maps: \w+ not \w+\)"):
        made([other], [head], tmp_path / "o", resume=True)


@pytest.mark.parametrize("value", [float("nan"), 1e9])
def test_a_gradient_that_is_none_is_not_hidden_by_the_clip(head, tmp_path, monkeypatch, value):
    begin(head, tmp_path / "o")
    kept = tmp_path / "o" / CHECKPOINT
    before = kept.read_bytes()
    loss = brain_mask.brain_loss
    monkeypatch.setattr(brain_mask, "brain_loss", lambda *given: poisoned(loss(*given), value))
    told = rf"gradient is \S+ at step 2, .* go on from {kept} with --resume and"
    with pytest.raises(ProcessingError, match=told):
        made([head], [head], tmp_path / "o", resume=True).run()
    assert kept.read_bytes() == before


def poisoned(loss, value):
    """Let a loss keep its value and have another gradient."""
    loss.register_hook(lambda gradient: gradient * value)
    return loss


def test_a_loss_that_is_no_number_ends_the_training(head, tmp_path, monkeypatch):
    nan = torch.tensor(float("nan"))
    monkeypatch.setattr(brain_mask, "brain_loss", lambda logits, target: logits.sum() * nan)
    with pytest.raises(ProcessingError, match="the loss is nan at step 0: .* start again with"):
        made([head], [head], tmp_path / "o").run()


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
    made([head], [], tmp_path / "o", training).run()
    assert computed == {expected}


def command(folder, *options):
    words = ["train-brain-mask", str(folder / "maps"), str(folder / "out"), "--device", "cpu"]
    return toolbox.main([*words, "--steps", "1", "--threads", "1", "--workers", "0", *options])


def test_command_line(tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")

    def quick_trainer(heads, held_out, folder, recipe, loop):
        recipe = replace(QUICK, steps=recipe.steps, seed=recipe.seed)
        return BrainMaskTrainer(heads, held_out, folder, recipe, loop)

    monkeypatch.setattr(brain_mask, "BrainMaskTrainer", quick_trainer)
    write_inputs(tmp_path)
    assert command(tmp_path, "--held-out", "head2") == EXIT_OK
    assert (tmp_path / "out" / "brain.safetensors").is_file()
    assert "step 1 of 1: loss" in caplog.text
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
        BrainMaskTrainer([head], [], tmp_path / "o", QUICK, replace(CPU, device="cuda"))
