"""``bagau train`` and ``bagau models`` from the command line."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_tree import write_labelled_tree

from bagau_bids.cli import toolbox
from bagau_bids.cli.train import settings_of
from bagau_bids.config import TEMPLATES
from bagau_bids.datasets import labelled as dataset
from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.network.bagau_net import BagauNet, BagauNetConfig
from bagau_bids.network.cards import find_weights
from bagau_bids.network.slices import network_input
from bagau_bids.network.weights import load_weights, save_weights
from bagau_bids.spaces import Image
from bagau_bids.synthesis.engine import ENGINE_VERSION
from bagau_bids.synthesis.pool import training_shard, write_shard
from bagau_bids.training import slices
from bagau_bids.training.settings import TrainingSettings


def parse(*options):
    module = toolbox.load_subcommand("train")
    parser = toolbox.build_parser("train", module)
    return parser.read(["train", "/bids", "--masks", "/masks", "/out", *options])


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
    said = parse("--extra", "/b2", "/m2", "--extra", "/b3", "/m3", "--validation", "sub-01", "x")
    pairs = [tuple(map(str, pair)) for pair in said.data.pairs]
    assert pairs == [("/bids", "/masks"), ("/b2", "/m2"), ("/b3", "/m3")]
    assert said.validation == ("01", "x")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Two subjects, a pool of one slice, and stand-ins for preprocessing and the template."""
    bids = tmp_path / "bids"
    write_labelled_tree(tmp_path, ("01", "02"))
    (bids / "dataset_description.json").write_text(
        json.dumps({"Name": "Tiny", "BIDSVersion": "1.10.0", "License": "CC0"})
    )

    def prepared(labelled, template, registration, cache_dir, *, inputs=()):
        rng = np.random.default_rng(0)
        brain = np.zeros((40, 40, 3), bool)
        brain[5:35, 5:35] = True
        reference = np.zeros(brain.shape, np.uint8)
        reference[10:15, 10:15, 1] = 1
        flair = rng.normal(9, 1, brain.shape).astype(np.float32)
        inputs = network_input(Image(flair, np.eye(4)), brain, flair * 0)
        name = labelled.scan.stem
        subject, key = labelled.scan.subject, f"{name}_0a"
        return TrainingScan(name, subject, 0, inputs, brain, reference, np.eye(4), key)

    monkeypatch.setattr(dataset, "prepare_scan", prepared)
    monkeypatch.setattr(
        "bagau_bids.preprocessing.template.find_template", lambda *args, **options: None
    )
    monkeypatch.setitem(slices.WIDTHS, "small", (4, 4, 6, 6, 8))
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
    card = load_weights(tiny / "out" / "best.safetensors").card.content
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


def test_resuming_with_another_split_or_pool_is_refused(tiny, capsys):
    assert train(tiny, "--validation", "02") == 0
    assert train(tiny, "--validation", "01", "--resume") == 2
    told = capsys.readouterr().err
    assert "checkpoint.pt: made with other data (training: sub-01_0a not sub-02_0a" in told
    pool = ("--synthetic-pool", f"{tiny / 'pool'}", "--synthetic-fraction", "0")
    assert train(tiny, "--validation", "02", "--resume", *pool) == 2
    assert "synthetic_pool: None not" in capsys.readouterr().err


def test_resumed_fine_tuning_keeps_its_initial_weights(tiny, capsys):
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        network = BagauNet(BagauNetConfig((4, 4, 6, 6, 8)))
        save_weights(tiny / f"{name}.safetensors", network, {})
    assert train(tiny, "--init", f"{tiny / 'first.safetensors'}") == 0
    assert train(tiny, "--steps", "3", "--resume") == 0
    card = load_weights(tiny / "out" / "last.safetensors").card.content
    assert card["initial_weights"] == "first.safetensors"
    assert train(tiny, "--resume", "--init", f"{tiny / 'second.safetensors'}") == 2
    assert "made with other initial weights (SHA-256: " in capsys.readouterr().err


def claim(folder, **changes):
    origin = {
        "label_maps": ["head1.nii.gz"],
        "lesion_masks": ["patient01_mask.nii.gz"],
        "template": TEMPLATES[0],
        "seed": 4,
        "volumes_per_shard": 10,
        "engine": ENGINE_VERSION,
    }
    (folder / "pool" / "pool.json").write_text(json.dumps(origin | changes))
    return "--synthetic-pool", f"{folder / 'pool'}"


def test_card_names_what_the_pool_was_drawn_from(tiny, caplog):
    assert train(tiny, *claim(tiny)) == 0
    card = load_weights(tiny / "out" / "best.safetensors").card.content
    pool = card["synthetic_pool"]
    assert pool["label_maps"] == ["head1.nii.gz"]
    assert pool["lesion_masks"] == ["patient01_mask.nii.gz"]
    assert (pool["seed"], pool["volumes"], pool["slices"]) == (4, 10, 3)
    assert "another version of the engine" not in caplog.text


def test_pool_of_another_template_is_refused(tiny, capsys):
    assert train(tiny, *claim(tiny, template="Other")) == 2
    expected = f"pool.json: slices with the atlas of Other, expected {TEMPLATES[0]}"
    assert expected in capsys.readouterr().err
    assert not (tiny / "out").exists()


def test_pool_of_another_engine_or_of_unknown_origin_is_told(tiny, caplog):
    assert train(tiny, *claim(tiny, engine="0123456789")) == 0
    assert f"another version of the engine (01234567, here {ENGINE_VERSION})" in caplog.text
    (tiny / "pool" / "pool.json").unlink()
    assert train(tiny, "--synthetic-pool", f"{tiny / 'pool'}", "--resume", "--steps", "3") == 0
    assert "pool.json: not there, so nothing tells what the pool was drawn from" in caplog.text


@pytest.mark.parametrize("name", toolbox.SUBCOMMANDS)
def test_every_option_says_what_it_is(name):
    parser = toolbox.build_parser(name, toolbox.load_subcommand(name))
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    chosen = subparsers.choices[name]
    formatter = chosen._get_formatter()
    for action in chosen._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue  # options of bagau-bids, which its own help explains
        text = formatter._expand_help(action) if action.help else ""
        words = re.sub(r"\(.*?\)", "", text)
        assert re.search(r"[a-z]{2}", words), f"{name} {action.dest}: {text!r}"
        assert "('" not in text, f"{name} {action.dest}: {text!r}"


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
    assert [line.split()[0] for line in listed.splitlines()] == [
        "small",
        "full",
        "stroke",
        "brain",
    ]
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
    assert (
        "expected its name as well, one of small, full, stroke, brain" in capsys.readouterr().err
    )


def test_models_refuses_a_damaged_file(tmp_path, capsys):
    path = tmp_path / "mine.safetensors"
    save_weights(path, BagauNet(BagauNetConfig((4, 4, 6, 6, 8))), {})
    path.write_bytes(path.read_bytes()[:-1])
    assert toolbox.main(["models", str(path)]) == 127
    assert "truncated" in capsys.readouterr().err
