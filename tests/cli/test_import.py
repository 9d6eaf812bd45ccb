"""``bagau import`` makes data sets that validate, lose nothing, and never mix."""

import errno
import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import challenge_tree
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bagau_bids.bids.scans import find_scans
from bagau_bids.bids.validation import check_dataset
from bagau_bids.cli import toolbox
from bagau_bids.config import Selection
from bagau_bids.datasets import writer
from bagau_bids.datasets.labelled import pair_masks, read_reference

CLAIM = ".bagau-import.json"


@pytest.fixture
def release(tmp_path):
    scans = [challenge_tree.small_scan(seed) for seed in range(6)]
    return challenge_tree.make_release(tmp_path / "wmh", scans)


@pytest.fixture
def pairs(tmp_path):
    """Two participants, one with two sessions whose age differs."""
    lines = ["participant_id\tsession_id\tflair\tmask\tsite\tage"]
    for seed, (person, session) in enumerate([("A", "1"), ("A", "2"), ("B", "1")]):
        flair, mask = challenge_tree.small_scan(seed)
        flair.to_filename(tmp_path / f"f{seed}.nii.gz")
        mask.to_filename(tmp_path / f"m{seed}.nii.gz")
        lines.append(f"{person}\t{session}\tf{seed}.nii.gz\tm{seed}.nii.gz\tx\t{70 + seed}")
    (tmp_path / "abvib.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "abvib.tsv"


def challenge(source, out, *options):
    return toolbox.main(["import", "wmh-challenge", f"{source}", f"{out}", *options])


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def validate(folder):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed beside this Python")
    found = subprocess.run(
        [validator, "--ignoreWarnings", folder],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--images", "pre", "--files", "copy")])
def test_validator_accepts_the_challenge(release, tmp_path, options):
    assert challenge(release, tmp_path / "bids", *options) == 0
    derivatives = sorted((tmp_path / "bids" / "derivatives").iterdir())
    assert [path.name for path in derivatives] == [
        "challenge",
        "manual",
        "manual-o3",
        "manual-o4",
    ]
    for folder in (tmp_path / "bids", *derivatives):
        validate(folder)


def test_validator_accepts_pairs_with_sessions(pairs, tmp_path):
    about = tmp_path / "about.json"
    about.write_text(json.dumps({"Name": "ABVIB", "License": "on request"}))
    assert (
        toolbox.main(
            ["import", "pairs", f"{pairs}", f"{tmp_path / 'bids'}", "--description", f"{about}"]
        )
        == 0
    )
    validate(tmp_path / "bids")
    validate(tmp_path / "bids" / "derivatives" / "manual")
    described = json.loads((tmp_path / "bids" / "dataset_description.json").read_text())
    assert (described["Name"], described["License"]) == ("ABVIB", "on request")
    assert (tmp_path / "bids" / "participants.tsv").read_text().splitlines() == [
        "participant_id\tsite",
        "sub-A\tx",
        "sub-B\tx",
    ]
    sessions = tmp_path / "bids" / "sub-A" / "sub-A_sessions.tsv"
    assert sessions.read_text().splitlines() == ["session_id\tage", "ses-1\t70", "ses-2\t71"]


def test_table_of_pairs_is_copied_and_the_images_linked(pairs, tmp_path):
    out = tmp_path / "bids"
    assert toolbox.main(["import", "pairs", f"{pairs}", f"{out}"]) == 0
    table = pd.read_csv(out / "sourcedata" / "import.tsv", sep="\t", index_col="source")
    assert table["how"].to_dict() == {
        "abvib.tsv": "copy",
        **{f"{kind}{number}.nii.gz": "hard" for kind in "fm" for number in range(3)},
    }
    assert not (out / table.loc["abvib.tsv", "path"]).samefile(pairs)


def test_commands_of_the_documentation_exist(repository):
    text = (repository / "docs" / "importing.md").read_text(encoding="utf-8")
    commands = [
        shlex.split(line)[1:] for line in text.splitlines() if line.startswith("bagau import ")
    ]
    assert {words[1] for words in commands} == {"folder", "wmh-challenge", "pairs"}
    parser = toolbox.build_parser("import", toolbox.load_subcommand("import"))
    for words in commands:
        parser.parse_args([word for word in words if "about.json" not in word][:4])


def test_training_and_segmentation_find_scans_and_masks(release, tmp_path):
    out = tmp_path / "bids"
    assert challenge(release, out) == 0
    check_dataset(out)
    scans = find_scans(out, Selection())
    labelled, notes = pair_masks(scans, out / "derivatives" / "manual")
    assert (len(scans), len(labelled), notes) == (6, 6, [])
    for one in labelled:
        assert set(np.unique(read_reference(one.mask_path, one.scan.path))) == {0, 1, 2}
    further, notes = pair_masks(scans, out / "derivatives" / "manual-o3")
    assert (len(further), len(notes)) == (3, 3)
    participants = pd.read_csv(out / "participants.tsv", sep="\t")
    assert participants.groupby(["site", "split"]).size().to_dict() == {
        ("Amsterdam", "test"): 2,
        ("Amsterdam", "training"): 1,
        ("Singapore", "training"): 1,
        ("Utrecht", "test"): 1,
        ("Utrecht", "training"): 1,
    }
    described = json.loads((out / "participants.json").read_text())
    assert set(described) == set(participants.columns)


@pytest.mark.parametrize("how", ["hard", "symlink", "copy"])
def test_manifest_lists_every_file_with_its_content(release, tmp_path, how, capsys):
    before = files_of(release)
    out = tmp_path / "deep" / "bids"
    assert challenge(release, out, "--files", how) == 0
    table = pd.read_csv(out / "sourcedata" / "import.tsv", sep="\t")
    assert set(table["source"]) == set(before)
    assert len(table) == len(before)
    assert set(table["status"]) == {"placed"}
    for row in table.itertuples():
        placed, source = out / row.path, release / row.source
        assert placed.read_bytes() == before[row.source]
        assert row.sha256 == hashlib.sha256(before[row.source]).hexdigest()
        assert row.size == len(before[row.source])
        assert placed.is_symlink() == (how == "symlink")
        assert placed.samefile(source) == (how != "copy")
        if how == "symlink":
            assert not os.path.isabs(os.readlink(placed))
    assert files_of(release) == before
    assert set(json.loads((out / "sourcedata" / "import.json").read_text())) == set(table.columns)
    assert f"{len(before)} files placed ({how}), 0 left out" in capsys.readouterr().out


def test_bad_cases_are_named_and_the_others_complete(release, tmp_path, capsys):
    (release / ".DS_Store").write_bytes(b"x")
    damaged = release / "training" / "Utrecht" / "0" / "orig" / "FLAIR.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    other = release / "test" / "Utrecht" / "20" / "orig" / "3DT1.nii.gz"
    other.write_bytes(b"no image")
    mask = release / "training" / "Singapore" / "50" / "wmh.nii.gz"
    nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), np.eye(4)).to_filename(mask)
    out = tmp_path / "bids"
    assert challenge(release, out) == 1
    said = capsys.readouterr().err
    assert f"left out: training/Utrecht/0: {damaged}: the gzip stream is truncated" in said
    assert f"left out: test/Utrecht/20, 3DT1.nii.gz: {other}:" in said
    assert "left out: training/Singapore/50" in said
    assert "grid (5, 6, 7) with affine [[1.0" in said
    assert not list(out.rglob("*000Utrecht*"))
    assert not list(out.rglob("*050Singapore*"))
    assert (out / "sub-020Utrecht" / "anat" / "sub-020Utrecht_FLAIR.nii.gz").is_file()
    assert not list(out.glob("sub-020Utrecht/anat/*T1w*"))
    assert len(pd.read_csv(out / "participants.tsv", sep="\t")) == 4
    table = pd.read_csv(out / "sourcedata" / "import.tsv", sep="\t")
    assert set(table["source"]) == set(files_of(release))
    left = table[table["status"] == "left out"]
    assert len(left) == 2 * 11 + 1 + 1  # two whole cases with their observers, a T1w, .DS_Store
    assert left["reason"].notna().all()
    assert left["path"].isna().all()
    validate(out)


def test_repaired_case_joins_the_others(release, tmp_path):
    out = tmp_path / "bids"
    path = release / "training" / "Utrecht" / "0" / "wmh.nii.gz"
    content = path.read_bytes()
    path.write_bytes(b"")
    assert challenge(release, out) == 1
    kept = out / "sub-020Utrecht" / "anat" / "sub-020Utrecht_FLAIR.json"
    changed = kept.stat().st_mtime_ns
    path.write_bytes(content)
    (out / "derivatives" / "bagau" / "sub-x").mkdir(parents=True)  # others may lie beside ours
    assert challenge(release, out) == 0
    assert kept.stat().st_mtime_ns == changed
    assert len(pd.read_csv(out / "participants.tsv", sep="\t")) == 6
    assert len(list(out.glob("sub-*"))) == 6


def test_stopped_import_is_not_complete_and_goes_on(release, tmp_path, monkeypatch):
    out = tmp_path / "bids"
    place, count = writer.place_file, iter(range(100))

    def stop_in_the_middle(*arguments):
        if next(count) == 30:
            (out / "sub-000Utrecht" / "anat" / ".x.nii.gz.1-ab.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        return place(*arguments)

    monkeypatch.setattr(writer, "place_file", stop_in_the_middle)
    assert challenge(release, out) == 130
    assert not (out / "dataset_description.json").exists()
    monkeypatch.undo()
    assert challenge(release, out) == 0
    assert not list(out.rglob("*.tmp"))
    again = tmp_path / "again"
    assert challenge(release, again) == 0
    assert {name for name in files_of(out) if name != CLAIM} == set(files_of(again)) - {CLAIM}


def test_case_that_cannot_be_written_leaves_nothing(release, tmp_path, monkeypatch, capsys):
    out = tmp_path / "bids"
    place = writer.place_file

    def full(source, path, how):
        if "manual/sub-050" in path.as_posix() or path.name == "readme.pdf":
            raise OSError(errno.ENOSPC, "No space left on device")
        return place(source, path, how)

    monkeypatch.setattr(writer, "place_file", full)
    assert challenge(release, out) == 1
    said = capsys.readouterr().err
    assert "left out: training/Singapore/50: cannot be written into" in said
    assert "left out: readme.pdf: cannot be written into" in said
    assert not [path for path in out.rglob("*050Singapore*") if path.is_file()]
    assert len(pd.read_csv(out / "participants.tsv", sep="\t")) == 5


def test_nothing_is_written_where_no_case_is_good(release, tmp_path, capsys):
    for path in release.rglob("wmh.nii.gz"):
        path.write_bytes(b"")
    assert challenge(release, tmp_path / "bids") == 1
    assert not (tmp_path / "bids").exists()
    assert "not written, no case can be imported" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--images", "pre"), ("--files", "copy")])
def test_other_options_are_never_mixed_in(release, tmp_path, options, capsys):
    out = tmp_path / "bids"
    assert challenge(release, out) == 0
    before = files_of(out)
    assert challenge(release, out, *options) == 2
    assert "was made with another " + options[0][2:] in capsys.readouterr().err
    assert files_of(out) == before


def test_other_source_is_never_mixed_in(release, pairs, tmp_path, capsys):
    out = tmp_path / "bids"
    assert challenge(release, out) == 0
    before = files_of(out)
    assert toolbox.main(["import", "pairs", f"{pairs}", f"{out}"]) == 2
    assert "was made with another command, images, source, table" in capsys.readouterr().err
    assert files_of(out) == before


def test_case_that_is_gone_is_not_mixed_with_the_rest(release, tmp_path, capsys):
    out = tmp_path / "bids"
    assert challenge(release, out) == 0
    (release / "training" / "Utrecht" / "0" / "wmh.nii.gz").write_bytes(b"")
    assert challenge(release, out) == 2
    said = capsys.readouterr().err
    assert "files that this import does not make" in said
    assert "import into a new folder" in said


def test_folder_of_others_is_refused(release, tmp_path, capsys):
    out = tmp_path / "bids"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert challenge(release, out) == 2
    assert "is not empty and no data set of `bagau import`" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert challenge(release, out / "mine.txt") == 2


def test_folder_within_the_source_is_refused(release, capsys):
    assert challenge(release, release / "bids") == 2
    assert "all of which is imported; expected a folder elsewhere" in capsys.readouterr().err
    assert not (release / "bids").exists()


def test_links_that_the_file_system_refuses_are_said_at_once(
    release, tmp_path, monkeypatch, capsys
):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert challenge(release, tmp_path / "bids") == 2
    said = capsys.readouterr().err
    assert "a hard link to" in said
    assert "choose --files symlink or --files copy" in said
    assert not (tmp_path / "bids").exists()
    assert challenge(release, tmp_path / "bids", "--files", "symlink") == 0


def test_folder_that_cannot_be_made_is_refused(release, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert challenge(release, tmp_path / "file" / "bids") == 2
    assert "cannot be made" in capsys.readouterr().err


def test_file_that_changed_meanwhile_is_noticed(release, tmp_path, monkeypatch, capsys):
    place = writer.place_file

    def careless(source, path, how):
        done = place(source, path, how)
        if path.name == "sub-000Utrecht_T1w.nii.gz":
            content = bytearray(path.read_bytes())
            content[-1] ^= 255
            path.write_bytes(content)
        if path.name == "sub-020Utrecht_T1w.nii.gz":
            path.unlink()
        return done

    monkeypatch.setattr(writer, "place_file", careless)
    out = tmp_path / "bids"
    assert challenge(release, out, "--files", "copy") == 1
    said = capsys.readouterr().err
    assert "2 files are not as sourcedata/import.tsv says" in said
    assert "sub-000Utrecht_T1w.nii.gz: differs from training/Utrecht/0/orig/3DT1.nii.gz" in said
    assert "sub-020Utrecht_T1w.nii.gz: is not test/Utrecht/20/orig/3DT1.nii.gz" in said
    assert not (out / "dataset_description.json").exists()


def test_description_that_is_no_json_is_refused(pairs, tmp_path, capsys):
    about = tmp_path / "about.json"
    about.write_text("{")
    command = ["import", "pairs", f"{pairs}", f"{tmp_path / 'bids'}", "--description", f"{about}"]
    assert toolbox.main(command) == 2
    assert "cannot be read as JSON" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [[], ["wmh-challenge"], ["pairs"], ["dicom"]])
def test_wrong_usage_ends_with_2(kind):
    assert toolbox.main(["import", *kind]) == 2
