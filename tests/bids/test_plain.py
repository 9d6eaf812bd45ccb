"""FLAIRs of any name: what their results are called, and the data set of links made of them."""

import html
import json

import pytest

from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.bids.plain import PAGE, PLAIN_NAMES, lay_out, name_scans, take_results
from bagau_bids.errors import UsageError


def files(folder, *names):
    """Write files, each with its name as content."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return [folder / name for name in names]


def test_results_are_named_after_the_file(tmp_path):
    paths = files(tmp_path, "b/my FLAIR (1).nii.gz", "a.b.nii")
    assert name_scans(paths) == {"my FLAIR (1)": paths[0], "a.b": paths[1]}


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = files(tmp_path, "x/p1/a/f.nii", "x/p2/a/f.nii.gz", "x/p3/b/f.nii", "g.nii")
    assert dict(zip(name_scans(paths), paths, strict=True)) == {
        "p1_a_f": paths[0],
        "p2_a_f": paths[1],
        "b_f": paths[2],
        "g": paths[3],
    }


def test_folders_of_dicom_have_names_too(tmp_path):
    for name in ("p1/DICOM", "p2/DICOM"):
        (tmp_path / name).mkdir(parents=True)
    folders = [tmp_path / "p1" / "DICOM", tmp_path / "p2" / "DICOM"]
    assert name_scans(folders) == {"p1_DICOM": folders[0], "p2_DICOM": folders[1]}


def test_a_file_named_twice_is_one_scan(tmp_path, monkeypatch):
    (path,) = files(tmp_path, "f.nii")
    monkeypatch.chdir(tmp_path)
    assert name_scans([path, type(path)("f.nii")]) == {"f": path}


def test_links_to_one_file_are_scans_of_their_own(tmp_path):
    (path,) = files(tmp_path, "f.nii")
    (tmp_path / "g.nii").symlink_to(path)
    assert list(name_scans([path, tmp_path / "g.nii"])) == ["f", "g"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["x.nii", "x.nii.gz"], ["x", "x_2"]),
        (["study/a.nii", "study.nii"], ["study", "study_2"]),
        (["x.nii", "x.nii.gz", "x_2.nii"], ["x", "x_3", "x_2"]),
    ],
)
def test_names_that_stay_alike_get_numbers(tmp_path, given, named):
    paths = files(tmp_path, *given)
    asked = [path.parent if path.parent.name == "study" else path for path in paths]
    found = {path: name for name, path in name_scans(asked).items()}
    assert [found[path] for path in asked] == named


def test_names_joined_of_other_folders_are_told_apart(tmp_path):
    """``a_b/f`` and ``a/b_f`` are joined to one name at two levels."""
    paths = files(tmp_path, "x/a/b_f.nii", "x/a_b/f.nii", "y/a_b/f.nii")
    assert len(name_scans(paths)) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.nii.gz", "does not exist; expected a FLAIR as .nii.* DICOM files: check the path"),
        ("scan.mgz", "is no NIfTI file; expected .*: convert it"),
        (".nii.gz", "has no name that a folder can have; expected .*: rename it"),
        ("..nii", "has no name that a folder can have"),
        ("a\nb.nii", "has no name that a folder can have"),
    ],
)
def test_what_is_no_nifti_file_is_refused(tmp_path, name, message):
    files(tmp_path, "scan.mgz", ".nii.gz", "..nii", "a\nb.nii")
    with pytest.raises(UsageError, match=message):
        name_scans([tmp_path / name])


def test_scans_become_a_data_set_of_links(tmp_path):
    scans = name_scans(files(tmp_path, "p 1/f-x.nii.gz", "g.nii"))
    (tmp_path / "g.json").write_text("{}")
    labels = lay_out(tmp_path / "bids", scans)
    assert labels == {"f-x": "fx", "g": "g"}
    first = tmp_path / "bids/sub-fx/anat/sub-fx_FLAIR.nii.gz"
    second = tmp_path / "bids/sub-g/anat/sub-g_FLAIR.nii"
    assert first.is_symlink()
    assert first.resolve() == scans["f-x"]
    assert second.resolve() == scans["g"]
    assert second.with_suffix(".json").read_text() == "{}"
    assert not first.with_name("sub-fx_FLAIR.json").exists()
    described = json.loads((tmp_path / "bids/dataset_description.json").read_text())
    assert {"Name", "BIDSVersion"} <= described.keys()


def test_labels_stay_and_are_never_shared(tmp_path):
    root = tmp_path / "bids"
    assert lay_out(root, name_scans(files(tmp_path, "a-b.nii"))) == {"a-b": "ab"}
    more = name_scans(files(tmp_path, " a_b .nii", "A.B.nii", "---.nii", "a-b.nii"))
    labels = lay_out(root, more)
    assert labels == {"a_b": "abn2", "A.B": "ABn3", "---": "scan", "a-b": "ab"}
    assert lay_out(root, dict(reversed(more.items()))) == labels
    assert (root / "sub-ab/anat/sub-ab_FLAIR.nii").resolve() == more["a-b"]


def test_another_file_of_the_name_is_refused(tmp_path):
    first, second = files(tmp_path, "x/f.nii", "y/f.nii.gz")
    lay_out(tmp_path / "out" / "bids", {"f": first})
    with pytest.raises(UsageError, match=f"out has results of {first} under its name, f; .*both"):
        lay_out(tmp_path / "out" / "bids", {"f": second})
    anat = tmp_path / "out" / "bids" / "sub-f" / "anat"
    assert [path.resolve() for path in anat.iterdir()] == [first]


def test_a_folder_stays_one_scan_whatever_it_was_converted_to(tmp_path):
    first, second = files(tmp_path, "x/f.nii", "y/f.nii.gz")
    lay_out(tmp_path / "bids", {"f": first}, {"f": tmp_path / "dicom"})
    lay_out(tmp_path / "bids", {"f": second}, {"f": tmp_path / "dicom"})
    anat = tmp_path / "bids" / "sub-f" / "anat"
    assert [path.resolve() for path in anat.iterdir()] == [second]


def test_without_links_files_are_copied(tmp_path, monkeypatch):
    (path,) = files(tmp_path, "f.nii")

    def refused(source, target, how):
        raise OSError(95, f"no {how} of {source} at {target}")

    monkeypatch.setattr("bagau_bids.bids.plain.place_file", refused)
    lay_out(tmp_path / "bids", {"f": path})
    made = tmp_path / "bids/sub-f/anat/sub-f_FLAIR.nii"
    assert made.read_text() == "f.nii"
    assert not made.is_symlink()


def results(derivatives, *kinds):
    anat = derivatives / "sub-x/anat"
    files(anat, *(f"sub-x_{kind}" for kind in kinds))
    files(derivatives, "sub-x.html")


def test_results_are_copied_to_plain_names(tmp_path):
    results(tmp_path, "space-orig_label-WMH_mask.nii.gz", "label-WMH_desc-volumes_morph.tsv")
    out = tmp_path / "out"
    files(out, PLAIN_NAMES["infarct_mask"], "notes.txt")
    take_results(tmp_path, "x", out, complete=True, name="x")
    assert {path.name for path in out.iterdir()} == {
        "wmh_mask.nii.gz",
        "volumes.tsv",
        "report.html",
        "notes.txt",
    }
    assert (out / "wmh_mask.nii.gz").read_text() == "sub-x_space-orig_label-WMH_mask.nii.gz"


def test_of_a_scan_that_failed_the_page_alone_is_copied(tmp_path):
    results(tmp_path, "space-orig_label-WMH_mask.nii.gz")
    take_results(tmp_path, "x", tmp_path / "out", complete=True, name="x")
    take_results(tmp_path, "x", tmp_path / "out", complete=False, name="x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [PAGE]


def test_links_of_the_page_lead_to_what_lies_beside_it_or_nowhere(tmp_path):
    mask = derivative_path(tmp_path, {"sub": "x"}, "wmh_mask")
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"mask")
    link = mask.relative_to(tmp_path).as_posix()
    (tmp_path / "sub-x.html").write_text(
        f'<a href="#part">down</a> <a href="https://doi.org/1">paper</a>\n'
        f'<a href="{link}">mask</a>, <a href="logs/CITATION.md">citation</a>\n'
        '<p class="files">Get the picture: <a href="sub-x/figures/a.png">a.png</a></p>\nend'
    )
    take_results(tmp_path, "x", tmp_path / "out", complete=True, name="x")
    assert (tmp_path / "out" / PAGE).read_text() == (
        '<a href="#part">down</a> <a href="https://doi.org/1">paper</a>\n'
        f'<a href="{PLAIN_NAMES["wmh_mask"]}">mask</a>, citation\nend'
    )


def test_the_page_calls_the_scan_by_its_name_and_the_kept_mask_by_its_place(tmp_path):
    derivatives, out = tmp_path / "out" / "bids" / "derivatives", tmp_path / "out" / "A&B"
    derivatives.mkdir(parents=True)
    (derivatives / "sub-x.html").write_text(
        '<title>sub-x – bagau</title><p id="sub-x_1">sub-x</p><p>sub-x1 --masks '
        "OUT/derivatives/edited</p>"
    )
    take_results(derivatives, "x", out, complete=True, name="A&B")
    assert (out / PAGE).read_text() == (
        '<title>A&amp;B – bagau</title><p id="sub-x_1">A&amp;B</p><p>sub-x1 --masks '
        "OUT/bids/derivatives/derivatives/edited</p>"
    )


def test_names_of_files_are_no_markup_on_the_page(tmp_path):
    link = tmp_path / "bids" / "a&b.nii"
    (tmp_path / "sub-x.html").write_text(f"{html.escape(str(link))}: damaged")
    hostile = tmp_path / "<img src=x onerror=alert(1)>'.nii"
    take_results(tmp_path, "x", tmp_path / "out", complete=False, name="x", names={link: hostile})
    said = (tmp_path / "out" / PAGE).read_text()
    assert said == f"{html.escape(str(hostile))}: damaged"
    assert "<img" not in said
