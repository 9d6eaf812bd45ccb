"""``bagau train`` and ``bagau models`` from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from labelled_tree import write_labelled_tree

from bagau_bids.cli import toolbox
from bagau_bids.cli.train import settings_of
from bagau_bids.network.bagau_net import BagauNet, BagauNetConfig
from bagau_bids.network.slices import network_input
from bagau_bids.network.weights import find_weights, load_weights, save_weights
from bagau_bids.training import dataset, loop
from bagau_bids.training.dataset import TrainingScan
from bagau_bids.training.pool import training_shard, write_shard
from bagau_bids.training.settings import TrainingSettings


def parse(*options):
    module = toolbox.load_subcommand("train")
    parser = toolbox.build_parser("train", module)
    return parser.parse_args(["train", "/bids", "--masks", "/masks", "/out", *options])


def test_defaults_are_the_recipe_of_the_paper():
    settings, _ = settings_of(parse())
    assert settings == TrainingSettings()
    assert (settings.loss, settings.false_negative_weight) == ("tversky", 0.7)
    assert (settings.optimizer, settings.learning_rate) == ("adam", 2e-4)
    assert (settings.batch_size, settings.epochs, settings.crop) == (32, 200, (200, 200))


def test_options_reach_the_settings():
    settings, running = settings_of(
        parse(
            *("--loss", "tversky+ce", "--optimizer", "adamw", "--lr", "4e-4", "--steps", "9"),
            *("--width", "small", "--ablation", "mam", "afm", "--crop", "160", "192"),
            *("--synthetic-pool", "/p", "--ema", "0.99", "--validate-every", "7"),
            *("--inputs", "flair"),
        )
    )
    assert (settings.loss, settings.optimizer, settings.learning_rate) == (
        "tversky+ce",
        "adamw",
        4e-4,
    )
    assert (settings.width, settings.ablations) == ("small", ("mam", "afm"))
    assert (settings.crop, settings.steps, settings.ema_decay) == ((160, 192), 9, 0.99)
    assert settings.synthetic_fraction == 0.5
    assert settings.inputs == ("flair",)
    assert running.validate_every == 7


def test_data_sets_may_be_added():
    args = parse("--extra", "/b2", "/m2", "--extra", "/b3", "/m3", "--validation", "sub-01", "x")
    assert [[str(p) for p in pair] for pair in args.extra] == [["/b2", "/m2"], ["/b3", "/m3"]]
    assert args.validation == ["01", "x"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Two subjects, a pool of one slice, and stand-ins for preprocessing and the template."""
    bids = tmp_path / "bids"
    write_labelled_tree(tmp_path, ("01", "02"))
    (bids / "dataset_description.json").write_text(
        json.dumps({"Name": "Tiny", "BIDSVersion": "1.10.0", "License": "CC0"})
    )

    def prepared(labelled, template, registration, cache_dir, *, with_t1=False):
        rng = np.random.default_rng(0)
        brain = np.zeros((40, 40, 3), bool)
        brain[5:35, 5:35] = True
        reference = np.zeros(brain.shape, np.uint8)
        reference[10:15, 10:15, 1] = 1
        flair = rng.normal(9, 1, brain.shape).astype(np.float32)
        inputs = network_input(flair, np.eye(4), brain, flair * 0)
        name = labelled.scan.stem
        return TrainingScan(name, labelled.scan.subject, 0, inputs, brain, reference, np.eye(4))

    monkeypatch.setattr(dataset, "prepare_scan", prepared)
    monkeypatch.setattr(
        "bagau_bids.preprocessing.template.find_template", lambda *args, **options: None
    )
    monkeypatch.setitem(loop.WIDTHS, "small", (4, 4, 6, 6, 8))
    labelled = dataset.LabelledScan(
        dataset.Scan(tmp_path / "x.nii", {"sub": "x"}), tmp_path / "m.nii"
    )
    scan = prepared(labelled, None, "", tmp_path)
    write_shard(tmp_path / "pool", "a", training_shard(scan.inputs, scan.reference))
    return tmp_path


def train(folder, *options, masks="masks"):
    recipe = ("--width", "small", "--steps", "2", "--batch-size", "2", "--crop", "32", "32")
    return toolbox.main(
        ["train", f"{folder / 'bids'}", "--masks", f"{folder / masks}", f"{folder / 'out'}"]
        + [*recipe, "--device", "cpu", *options]
    )


def test_from_masks_to_weights_with_a_card(tiny, caplog):
    caplog.set_level("INFO")
    pool = ("--synthetic-pool", f"{tiny / 'pool'}")
    assert train(tiny, "--validation", "02", "--licence", "CC-BY-4.0", *pool) == 0
    _, card = load_weights(tiny / "out" / "best.safetensors")
    (source,) = card["training_data"]
    assert (source["Name"], source["License"]) == ("Tiny", "CC0")
    assert (source["training"], source["validation"]) == (["sub-01"], ["sub-02"])
    assert (card["licence"], card["synthetic_share"]) == ("CC-BY-4.0", 0.5)
    assert card["preprocessing"]["brain_margin_mm"] == 5
    assert "step 2 of 2" in caplog.text
    assert "validation: sub-02" in caplog.text


def test_folder_with_a_training_is_not_overwritten(tiny, capsys, caplog):
    caplog.set_level("INFO")
    assert train(tiny) == 0
    assert train(tiny) == 2
    assert "holds a training; go on with --resume" in capsys.readouterr().err
    assert train(tiny, "--resume", "--steps", "3") == 0
    assert "step 3 of 3" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--synthetic-fraction", "0.5"), "and --synthetic-pool for more than 0"),
        (("--synthetic-fraction", "-1"), "expected 0 to 1"),
        (("--inputs", "t1"), "--inputs t1: expected flair among them"),
        (("--inputs", "flair", "t1", "--synthetic-pool", "pool"), "whose slices have no T1w"),
        (("--ema", "1"), "--ema 1.0: expected at least 0 and less than 1"),
        (("--validation", "77"), "--validation/--test: 77"),
    ],
)
def test_contradictions_are_refused(tiny, capsys, options, message):
    assert train(tiny, *options) == 2
    assert message in capsys.readouterr().err


def test_missing_folders_are_named(tiny, capsys):
    assert train(tiny, masks="nowhere") == 2
    assert "no mask for any of 2 FLAIRs" in capsys.readouterr().err
    assert toolbox.main(["train", "/nowhere", "--masks", "/m", f"{tiny / 'o'}"]) == 2
    assert "/nowhere: no such folder; expected a BIDS data set" in capsys.readouterr().err


def test_models_lists_and_shows(tmp_path, capsys):
    assert toolbox.main(["models"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == ["small", "full", "brain"]
    path = tmp_path / "mine.safetensors"
    save_weights(path, BagauNet(BagauNetConfig((4, 4, 6, 6, 8))), {"licence": "CC0"})
    assert toolbox.main(["models", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["licence"] == "CC0"
    path.with_suffix(".md").write_text("# Mine\n")
    assert toolbox.main(["models", str(path)]) == 0
    assert capsys.readouterr().out.startswith("# Mine\n")


def test_models_prints_the_path_for_other_commands(capsys):
    assert toolbox.main(["models", "small", "--path"]) == 0
    assert Path(capsys.readouterr().out.strip()) == find_weights("small")


@pytest.mark.parametrize("option", ["--path", "--json"])
def test_models_needs_a_name_for_what_is_said_of_one(option, capsys):
    assert toolbox.main(["models", option]) == 2
    assert "expected its name as well, one of small, full, brain" in capsys.readouterr().err


def test_models_refuses_a_damaged_file(tmp_path, capsys):
    path = tmp_path / "mine.safetensors"
    save_weights(path, BagauNet(BagauNetConfig((4, 4, 6, 6, 8))), {})
    path.write_bytes(path.read_bytes()[:-1])
    assert toolbox.main(["models", str(path)]) == 127
    assert "truncated" in capsys.readouterr().err
