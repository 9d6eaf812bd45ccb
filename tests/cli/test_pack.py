"""``bagau pack`` and ``bagau train --stream``: from masks to weights, on another machine if so."""

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from labelled_tree import write_labelled_tree
from synthetic_heads import draw_coarsely, register_nothing, write_inputs

from bagau_bids.cli import toolbox
from bagau_bids.cli.train_stream import settings_of
from bagau_bids.datasets import labelled as dataset
from bagau_bids.datasets.labelled import TrainingScan
from bagau_bids.network.slices import network_input
from bagau_bids.network.weights import load_weights
from bagau_bids.preprocessing.template import Template
from bagau_bids.spaces import Image
from bagau_bids.synthesis import heads
from bagau_bids.training import stream
from bagau_bids.training.settings import StreamSettings

REPOSITORY = Path(__file__).parents[2]


def parse(*options):
    arguments = ["train", "--stream", "/pack", "/out", *options]
    module = toolbox.load_subcommand("train-stream")
    return toolbox.build_parser("train", module).read(arguments).recipe


def test_defaults_are_those_of_the_settings():
    assert settings_of(parse("--steps", "9")) == StreamSettings(steps=9)
    assert settings_of(parse("--seconds", "60")) == StreamSettings(seconds=60)


def test_every_option_reaches_its_setting():
    settings = settings_of(
        parse(
            *(
                "--steps",
                "9",
                "--width",
                "full",
                "small",
                "--outputs",
                "wmh",
                "--crop",
                "32",
                "48",
            ),
            *("--batch-size", "6", "--real-share", "0.1", "--stroke-share", "0.2"),
            *("--false-negative-weight", "0.41", "--synthetic-false-negative-weight", "0.42"),
            *("--lesion-weight", "0.43", "--infarct-weight", "0.44", "--lr", "1e-3"),
            *("--weight-decay", "0.01", "--ema", "0.9", "--reuse", "2", "--warm-up-steps", "7"),
            *("--random-seed", "5", "--ring", "100", "--validate-at", "1", "0.3"),
            *("--relabel-at", "0.5", "--label-levels", "0.35", "0.2"),
            *("--synthetic-validation", "3"),
        )
    )
    assert settings == StreamSettings(
        widths=("full", "small"),
        outputs=("wmh",),
        steps=9,
        batch_size=6,
        crop=(32, 48),
        real_share=0.1,
        stroke_share=0.2,
        real_false_negative_weight=0.41,
        synthetic_false_negative_weight=0.42,
        lesion_weight=0.43,
        infarct_weight=0.44,
        learning_rate=1e-3,
        weight_decay=0.01,
        warm_up_steps=7,
        ema_decay=0.9,
        relabel_at=(0.5,),
        label_levels=(0.35, 0.2),
        validate_at=(0.3, 1.0),
        reuse=2.0,
        ring_slices=100,
        least_slices=50,
        synthetic_validation=3,
        seed=5,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "one of the arguments --steps --seconds is required"),
        (("--steps", "2", "--seconds", "3"), "not allowed with argument"),
        (("--steps", "2", "--lr", "-1"), "'-1': expected a number of at least 0"),
        (("--steps", "2", "--lr", "x"), "'x': expected a number of at least 0"),
        (("--steps", "2", "--validate-at", "1.5"), "'1.5': expected more than 0 and at most 1"),
        (("--steps", "2", "--real-share", "0.7"), "expected less than 1 together"),
        (("--steps", "2", "--outputs", "infarct"), "expected wmh, or wmh infarct"),
        (("--steps", "2", "--label-levels", "0.3", "0.5"), "--label-levels 0.3 0.5: expected the"),
        (("--steps", "2", "--ema", "1"), "--ema 1.0: expected less than 1"),
        (("--steps", "2"), "/pack/pack.json: not there"),
    ],
)
def test_wrong_options_are_refused(options, message, capsys, tmp_path):
    out = f"{tmp_path / 'out'}"
    try:
        code = toolbox.main(["train", "--stream", "/pack", out, "--device", "cpu", *options])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Two subjects, stroke slices, heads, and a stand-in for preprocessing and the template."""
    write_labelled_tree(tmp_path, ("01", "02"))
    register_nothing(monkeypatch)
    draw_coarsely(monkeypatch)
    white = tmp_path / "wm.nii.gz"
    affine = np.eye(4)
    affine[:3, 3] = -90, -126, 0
    nib.Nifti1Image(np.full((181, 217, 30), 0.8, np.float32), affine).to_filename(white)
    template = Template("Fake", white, white, white)
    (label_map, _), masks = write_inputs(tmp_path)
    heads.prepare_heads([label_map], template, masks, tmp_path / "heads")
    brain = (np.add.outer(np.arange(-78, 79) ** 2 / 65**2, np.arange(-94, 95) ** 2 / 80**2)) < 1
    flair = (brain * np.random.default_rng(0).integers(80, 120, (10, 1, 1))).astype(np.uint8)
    flair += (brain * np.linspace(0, 60, 189)).astype(np.uint8)
    infarct = np.zeros(flair.shape, bool)
    infarct[:, 40:60, 80:100] = True
    np.savez(tmp_path / "slices.npz", flair=flair, infarct=infarct, ids=np.arange(10))

    def prepared(labelled, template, registration, cache_dir, *, inputs=()):
        rng = np.random.default_rng(int(labelled.scan.subject))
        brain = np.zeros((40, 40, 5), bool)
        brain[5:35, 5:35] = True
        reference = np.zeros(brain.shape, np.uint8)
        reference[10:15, 10:15, 1] = 1
        values = rng.normal(9, 1, brain.shape).astype(np.float32)
        inputs = network_input(Image(values, np.eye(4)), brain, values * 0)
        name, subject = labelled.scan.stem, labelled.scan.subject
        return TrainingScan(name, subject, 0, inputs, brain, reference, np.eye(4), f"{name}_0a")

    monkeypatch.setattr(dataset, "prepare_scan", prepared)
    monkeypatch.setattr(
        "bagau_bids.preprocessing.template.find_template", lambda *args, **options: template
    )
    monkeypatch.setitem(stream.WIDTHS, "small", (4, 4, 6, 6, 8))
    return tmp_path


def packed(folder, *options):
    return toolbox.main(
        ["pack", f"{folder / 'bids'}", f"{folder / 'pack'}", "--masks", f"{folder / 'masks'}"]
        + ["--validation", "02", "--heads", f"{folder / 'heads'}"]
        + ["--stroke-slices", f"{folder}", *options]
    )


def test_from_masks_to_a_pack_to_weights(tree, capsys):
    assert packed(tree) == 0
    assert "1 scans to train on, 1 to judge by" in capsys.readouterr().out
    assert packed(tree) == 2
    assert "holds a pack already" in capsys.readouterr().err
    quick = ["--steps", "2", "--batch-size", "3", "--crop", "32", "32", "--ring", "64"]
    quick += ["--synthetic-validation", "1", "--device", "cpu", "--workers", "0"]
    arguments = ["train", "--stream", f"{tree / 'pack'}", f"{tree / 'out'}", *quick]
    arguments += ["--teachers", "small", "--licence", "CC0"]
    assert toolbox.main(arguments) == 0
    card = load_weights(tree / "out" / "small-best.safetensors").card.content
    assert (card["licence"], card["teachers"]) == ("CC0", ["small"])
    assert card["training_scans"] == ["sub-01"]
    assert card["validation_scans"] == ["sub-02"]
    assert card["preprocessing"]["registration"] == "robust"
    assert toolbox.main(arguments) == 2
    assert "the folder holds a training" in capsys.readouterr().err
    again = ["3" if one == "2" else one for one in arguments]
    assert toolbox.main([*again, "--resume"]) == 0


def test_validation_scans_must_be_there(tree, monkeypatch, capsys):
    def fails(*args, **options):
        raise dataset.InputImageError("cannot be processed")

    monkeypatch.setattr(dataset, "prepare_scan", fails)
    assert packed(tree) == 1
    assert "none of 1 scans to validate on could be preprocessed" in capsys.readouterr().err


def test_results_come_back_in_pieces(tmp_path):
    """The script for another machine, with a stand-in for Python that writes what is trained."""
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/sh\n"
        'echo "$@"\n'
        '[ "$1" = -m ] && [ "$3" = train ] || exit 0\n'
        'head -c 20000000 /dev/zero >"$6/full-best.safetensors"\n'
        'echo "{}" >"$6/full-best.json"\n'
        "exit 3\n"
    )
    fake.chmod(0o755)
    (tmp_path / "pack").mkdir()
    ended = subprocess.run(
        [f"{REPOSITORY / 'tools' / 'train_elsewhere.sh'}", f"{tmp_path / 'pack'}"]
        + [f"{tmp_path / 'results'}", "--seconds", "5"],
        env={"PYTHON": f"{fake}", "PATH": "/usr/bin:/bin", "RUN": f"{tmp_path / 'run'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 3, ended.stderr
    assert f"train --stream {tmp_path / 'pack'} {tmp_path / 'run'} --seconds 5" in ended.stdout
    found = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert found == ["full-best.safetensors.00", "full-best.safetensors.01", "logs.tar.gz"]
    pieces = [path.stat().st_size for path in sorted((tmp_path / "results").glob("full*"))]
    assert pieces == [15 * 2**20, 20_000_000 - 15 * 2**20]
    names = subprocess.check_output(
        ["tar", "-tzf", tmp_path / "results" / "logs.tar.gz"], text=True
    )
    assert {"./log.txt", "./full-best.json"} <= set(names.split())
