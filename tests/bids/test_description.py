"""The files that describe the output folder as a whole."""

import json
import re
from pathlib import Path

import pytest

from bagau_bids import __version__
from bagau_bids.bids.description import (
    citation_text,
    derivative_links,
    write_citation,
    write_dataset_files,
)
from bagau_bids.config import (
    MODELS,
    PERIVENTRICULAR_RULES,
    REGISTRATIONS,
    SKULL_STRIPS,
    TEMPLATES,
    Processing,
)
from bagau_bids.errors import UsageError


@pytest.fixture
def bids_dir(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    content = {"Name": "x", "BIDSVersion": "1.8.0", "DatasetDOI": "doi:10.1/x", "License": "CC0"}
    (folder / "dataset_description.json").write_text(json.dumps(content))
    return folder


def describe(out, bids_dir, **options):
    notes = write_dataset_files(out, bids_dir=bids_dir, processing=Processing(**options))
    return json.loads((out / "dataset_description.json").read_text()), notes


def test_description_has_what_a_derivative_needs(tmp_path, bids_dir):
    found, notes = describe(tmp_path / "out", bids_dir)
    assert notes == ()
    assert found["BIDSVersion"] == "1.11.1"
    assert found["DatasetType"] == "derivative"
    assert found["Name"]
    assert found["GeneratedBy"][0]["Name"] == "bagau-bids"
    assert found["GeneratedBy"][0]["Version"] == __version__
    assert found["SourceDatasets"] == [{"DOI": "doi:10.1/x"}]
    assert found["License"] == "CC0"
    assert found["Authors"] == [
        "The authors of the source data set",
        "The bagau-bids developers",
    ]
    assert "CITATION.md" in found["HowToAcknowledge"]
    assert found["DatasetLinks"]["raw"] == bids_dir.as_uri()
    assert found["DatasetLinks"]["templateflow"].startswith("https://")


def test_raw_data_without_a_description_is_linked_by_address(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    found, _ = describe(tmp_path / "out", raw)
    assert found["SourceDatasets"] == [{"URL": raw.as_uri()}]


def test_link_is_relative_where_the_output_lies_inside_the_data_set(bids_dir):
    found, _ = describe(bids_dir / "derivatives" / "bagau-bids", bids_dir)
    assert found["DatasetLinks"]["raw"] == "../.."


def test_links_of_an_earlier_run_stay(tmp_path, bids_dir):
    (tmp_path / "masks").mkdir()
    describe(tmp_path / "out", bids_dir, derivatives=(tmp_path / "masks",))
    found, _ = describe(tmp_path / "out", bids_dir)
    assert found["DatasetLinks"]["masks"] == (tmp_path / "masks").as_uri()


def test_second_run_writes_nothing(tmp_path, bids_dir):
    out = tmp_path / "out"
    describe(out, bids_dir)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    describe(out, bids_dir)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("BAGAU_DOCKER_TAG", "0.1.0", {"Type": "docker", "Tag": "0.1.0"}),
        ("BAGAU_SINGULARITY_URL", "docker://x", {"Type": "singularity", "URI": "docker://x"}),
    ],
)
def test_container_is_named(tmp_path, bids_dir, monkeypatch, variable, value, expected):
    monkeypatch.setenv(variable, value)
    found, _ = describe(tmp_path / "out", bids_dir)
    assert found["GeneratedBy"][0]["Container"] == expected


def test_results_of_another_version_are_worth_a_warning(tmp_path, bids_dir):
    out = tmp_path / "out"
    describe(out, bids_dir)
    path = out / "dataset_description.json"
    path.write_text(path.read_text().replace(__version__, "0.0.1"))
    _, notes = describe(out, bids_dir)
    assert "results of bagau-bids 0.0.1" in notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"GeneratedBy": [{"Name": "fMRIPrep"}]}', "made by fMRIPrep"),
        ('{"Name": "raw data"}', "not made by a pipeline"),
        ("{", "truncated.*expected the description of a data set"),
        ("[]", "Expected `object`, got `array`.*repair or remove it"),
        ('{"GeneratedBy": [{}]}', r"missing required field `Name` - at `\$.GeneratedBy\[0\]`"),
    ],
)
def test_other_data_sets_are_not_written_into(tmp_path, bids_dir, content, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset_description.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        describe(tmp_path / "out", bids_dir)
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_links_have_names_of_their_own():
    folders = [Path("/a/fmri-prep"), Path("/b/fmriprep"), Path("/c/raw"), Path("/d/---")]
    links = derivative_links(folders)
    assert links == {
        "fmriprep": folders[0],
        "fmriprep2": folders[1],
        "raw2": folders[2],
        "derivatives": folders[3],
    }


def all_processing():
    for template in TEMPLATES:
        yield Processing(template=template)
    for registration in REGISTRATIONS:
        yield Processing(registration=registration)
    for skull_strip in SKULL_STRIPS:
        yield Processing(skull_strip=skull_strip)
    for model in MODELS:
        yield Processing(model=model)
    yield Processing(weights=(Path("/x/own.safetensors"),), min_lesion_size_mm3=5, threshold=0.3)
    for rule in PERIVENTRICULAR_RULES:
        yield Processing(periventricular_rule=rule)
    yield Processing(derivatives=(Path("/masks"),))
    yield Processing(infarct=True, known_lesions=(Path("/masks"),))


def test_citation_fits_every_choice_of_options(tmp_path):
    for processing in all_processing():
        assert not re.search(r"[{}]", citation_text(processing))
    own = citation_text(Processing(weights=(Path("/x/own.safetensors"),), threshold=0.3))
    assert "own.safetensors" in own
    assert "0.3 or more" in own
    assert "below 5 mm3" in citation_text(Processing(min_lesion_size_mm3=5))
    assert "skull-stripped beforehand" in citation_text(Processing(skull_strip="skip"))
    assert "mirrored" not in own
    assert "infarct" not in own
    told = " ".join(citation_text(Processing(infarct=True)).split())
    assert "voxels of a probability of infarct of 0.5 or more were taken as infarct" in told
    assert "Known lesions" not in told
    assert "Known lesions" in citation_text(Processing(known_lesions=(Path("/masks"),)))
    mirrored = " ".join(citation_text(Processing(tta=True)).split())
    assert "The images mirrored from left to right were given to it too, and" in mirrored


def test_methods_tell_regions_grades_and_ventricles_with_their_sources():
    text = " ".join(citation_text(Processing()).split())
    for words in (
        "U-Net trained on synthetic FLAIRs of heads, 15 % of them with random contrast",
        "taken from the template where CSF could not be told from tissue",
        "10 mm from the ventricles are called periventricular [@periventricular10mm]",
        "4 mm from the cortex of the template [@periventricular3mm]",
        "Fazekas grades [@fazekas] were estimated from the lengths that the CREDOS scale gives "
        "[@credos]",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("card", "there", "absent"),
    [
        (
            {"architecture": "unet", "inputs": ["flair", "t1"]},
            ("from FLAIR and T1-weighted images", "registered rigidly", "@li2018"),
            ("alone", "map were given", "@bagaunet"),
        ),
        (
            {"architecture": "unet", "inputs": ["flair"]},
            ("images alone", "within the brain, was given", "@li2018"),
            ("T1-weighted image of the same", "@bagaunet"),
        ),
        (
            {"architecture": "bagau_net"},
            ("images alone", "and the white matter map were given", "@bagaunet"),
            ("@li2018",),
        ),
    ],
)
def test_methods_name_the_network_and_what_it_saw(tmp_path, card, there, absent):
    (tmp_path / "w.json").write_text(json.dumps({"config": {}, "sha256": "0" * 64, **card}))
    text = " ".join(citation_text(Processing(weights=(tmp_path / "w.safetensors",))).split())
    assert all(words in text for words in there)
    assert not any(words in text for words in absent)


def test_every_key_cited_is_in_the_bibliography(tmp_path):
    write_citation(tmp_path, Processing())
    entries = set(re.findall(r"^@\w+\{(\w+),", (tmp_path / "logs/CITATION.bib").read_text(), re.M))
    for processing in all_processing():
        cited = set(re.findall(r"@(\w+)", citation_text(processing)))
        assert cited <= entries


def test_bidsignore_names_what_is_no_bids(tmp_path, bids_dir):
    describe(tmp_path / "out", bids_dir)
    lines = (tmp_path / "out" / ".bidsignore").read_text().split()
    assert {"figures", "logs", "log", "*.html", "*_xfm.*", "*_morph.*", "group_*"} <= set(lines)
