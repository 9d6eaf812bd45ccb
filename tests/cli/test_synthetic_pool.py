"""``bagau synthetic-pool`` from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_heads import draw_coarsely, register_nothing, write_inputs
from threadpoolctl import threadpool_info, threadpool_limits

from bagau_bids.cli import toolbox
from bagau_bids.errors import EXIT_OK, EXIT_USAGE
from bagau_bids.preprocessing import template
from bagau_bids.synthesis import heads
from bagau_bids.synthesis.pool import open_pool


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Run the subcommand on tiny heads with shards of one volume."""
    registrations = register_nothing(monkeypatch)
    draw_coarsely(monkeypatch)
    monkeypatch.setattr(heads, "SHARD_VOLUMES", 1)
    files = (Path(name) for name in ("t1w", "wm", "mask"))
    fake = template.Template("Fake", *files)
    monkeypatch.setattr(template, "find_template", lambda *_, **__: fake)
    write_inputs(tmp_path)

    def run(*options, volumes=1):
        maps, out, masks = (str(tmp_path / name) for name in ("maps", "pool", "masks"))
        words = ["synthetic-pool", maps, out, "--volumes", str(volumes), *options]
        return toolbox.main([*words, "--lesion-masks", masks])

    run.registrations, run.folder = registrations, tmp_path / "pool"
    return run


def test_excluded_patient_is_nowhere_in_the_pool(pool, capsys):
    assert pool("--exclude-lesion-masks", "patient02") == EXIT_OK
    for head in heads.load_training_heads(pool.folder / "heads"):
        assert [len(np.unique(c)) for c in head.lesions.components] == [1, 3]
    origin = json.loads((pool.folder / "pool.json").read_text())
    assert origin["lesion_masks"] == ["patient01_mask.nii.gz", "patient03_mask.nii.gz"]
    assert "slices" in capsys.readouterr().out
    # Going on with the patient would mix in what was left out.
    assert pool() == EXIT_USAGE
    assert "made with another lesion_masks" in capsys.readouterr().err


def test_infarcts_are_named_and_left_out_by_a_file(pool, tmp_path, capsys):
    left_out = tmp_path / "held-out.txt"
    left_out.write_text("patient02\npatient03_mask.nii.gz\n")
    infarcts = ("--infarct-masks", str(tmp_path / "masks"))
    assert pool(*infarcts, "--exclude-infarct-masks", str(left_out), "--heads-only") == EXIT_OK
    for head in heads.load_training_heads(pool.folder / "heads"):
        assert [len(np.unique(c)) for c in head.infarcts.components] == [1]
        assert len(head.lesions.voxels) == 3
    origin = json.loads((pool.folder / "pool.json").read_text())
    assert origin["infarct_masks"] == ["patient01_mask.nii.gz"]
    assert "heads: 2 heads" in capsys.readouterr().out
    assert not list(pool.folder.glob("*.npy"))
    assert pool(*infarcts) == EXIT_USAGE
    assert "made with another infarct_masks" in capsys.readouterr().err


def test_no_volumes_means_heads_alone(pool):
    assert pool(volumes=0) == EXIT_OK
    assert len(list((pool.folder / "heads").iterdir())) == 2
    assert not list(pool.folder.glob("*.npy"))


def test_file_of_names_must_be_readable(pool, tmp_path, capsys):
    missing = str(tmp_path / "missing.txt")
    infarcts = ("--infarct-masks", str(tmp_path / "masks"), "--exclude-infarct-masks")
    assert pool(*infarcts, missing) == EXIT_USAGE
    assert "missing.txt: found no readable text file" in capsys.readouterr().err
    assert pool(*infarcts, "patient07") == EXIT_USAGE
    assert "infarct mask to leave out: patient07 is not there" in capsys.readouterr().err


def test_second_run_goes_on(pool):
    assert pool() == EXIT_OK
    first = {p: p.stat().st_mtime_ns for p in pool.folder.rglob("*") if p.is_file()}
    count = len(open_pool(pool.folder))
    assert 0 < count <= 32
    assert pool(volumes=2) == EXIT_OK
    assert len(pool.registrations) == 2
    assert {p: p.stat().st_mtime_ns for p in first} == first
    opened = open_pool(pool.folder)
    assert len(opened.shards) == 2
    assert len(opened) > count


def test_blas_has_one_thread_while_drawing(pool, monkeypatch):
    seen = []
    draw = heads.synthetic_shards

    def watched(*args):
        seen.extend(i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas")
        return draw(*args)

    monkeypatch.setattr(heads, "synthetic_shards", watched)
    assert pool() == EXIT_OK
    assert set(seen) == {1}


def test_device_reaches_the_engine_and_the_origin(pool, monkeypatch):
    devices = []
    draw = heads.synthetic_shards

    def watched(some, numbers, seed, device):
        devices.append(device)
        return draw(some, numbers, seed, device)

    monkeypatch.setattr(heads, "synthetic_shards", watched)
    assert pool() == EXIT_OK
    assert pool("--device", "cpu", volumes=2) == EXIT_OK
    assert devices == ["cpu", "cpu"]
    origin = json.loads((pool.folder / "pool.json").read_text())
    assert (origin["device"], origin["volumes_per_shard"]) == ("cpu", 1)


def test_pool_is_what_the_engine_draws_on_the_cpu(pool):
    assert pool("--random-seed", "3") == EXIT_OK
    with threadpool_limits(1, user_api="blas"):  # more threads sum in another order
        (expected,) = heads.synthetic_shards(
            heads.load_training_heads(pool.folder / "heads"), range(1), 3
        )
    read = open_pool(pool.folder).shards[0]
    np.testing.assert_array_equal(
        read.channels["flair"], expected.channels["flair"].astype(np.float16)
    )
    np.testing.assert_array_equal(read.target, expected.target)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is there")
def test_gpu_that_is_not_there_is_refused_before_any_work(pool, capsys):
    assert pool("--device", "cuda") == EXIT_USAGE
    assert "--device cuda: PyTorch" in capsys.readouterr().err
    assert not pool.folder.exists()


def test_unknown_patient_is_refused_before_any_work(pool, capsys):
    assert pool("--exclude-lesion-masks", "patient26") == EXIT_USAGE
    assert "patient26 is not there, expected some of patient01" in capsys.readouterr().err
    assert not pool.folder.exists()


def test_folder_of_unknown_origin_is_refused(pool, capsys):
    assert pool() == EXIT_OK
    (pool.folder / "pool.json").unlink()
    assert pool() == EXIT_USAGE
    assert "no pool.json that says what" in capsys.readouterr().err


def test_folder_without_label_maps_is_refused(tmp_path, capsys):
    assert toolbox.main(["synthetic-pool", str(tmp_path), str(tmp_path / "out")]) == EXIT_USAGE
    expected = "found no *.nii.gz file, expected a folder of whole-head label maps"
    assert expected in capsys.readouterr().err


def test_masks_must_be_there(tmp_path, capsys):
    write_inputs(tmp_path)
    words = ["synthetic-pool", str(tmp_path / "maps"), str(tmp_path / "out")]
    assert toolbox.main([*words, "--lesion-masks", str(tmp_path)]) == EXIT_USAGE
    assert "expected a folder of lesion masks in the template's space" in capsys.readouterr().err
    assert toolbox.main([*words, "--exclude-lesion-masks", "a"]) == EXIT_USAGE
    assert "expected --lesion-masks as well" in capsys.readouterr().err
    assert toolbox.main([*words, "--exclude-infarct-masks", "a"]) == EXIT_USAGE
    assert "expected --infarct-masks as well" in capsys.readouterr().err
