"""Records of scans: read as they were written, and refused by file and field otherwise."""

import json

import numpy as np
import pytest
from fake_derivatives import TEMPLATE, write_failure, write_scan

from bagau_bids import __version__
from bagau_bids.bids import records
from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.errors import ProcessingError
from bagau_bids.files import write_json

ENTITIES = {"sub": "1", "ses": "a"}


@pytest.fixture
def path(tmp_path):
    write_scan(tmp_path, ENTITIES)
    return derivative_path(tmp_path, ENTITIES, "record")


def change(path, keys, value):
    """Put a value into the record, or take the key out where it is None."""
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_a_record_is_written_as_it_was_read(path):
    content = path.read_bytes()
    record = records.read_record(path)
    assert record.options.template == TEMPLATE
    assert record.steps.registration.attempts[0].overlap == 0.93
    path.unlink()
    write_json(path, record)
    assert path.read_bytes() == content


def test_a_step_is_written_in_the_order_of_its_fields_without_what_is_unset(tmp_path):
    step = records.ConformRecord(
        notes=("a",),
        shape=(2, 3, 4),
        spacing_mm=(1.0, 1.0, np.float32(6.5)),
        stored_axes="LPS",
        tilt_degrees=np.float64(0.5),
        duration_s=0.1,
    )
    write_json(tmp_path / "step.json", step)
    assert list(json.loads((tmp_path / "step.json").read_text()).items()) == [
        ("notes", ["a"]),
        ("sidecar_signs", []),
        ("shape", [2, 3, 4]),
        ("spacing_mm", [1.0, 1.0, 6.5]),
        ("stored_axes", "LPS"),
        ("tilt_degrees", 0.5),
        ("duration_s", 0.1),
    ]


def test_steps_come_in_their_order_and_only_those_that_there_were(path):
    steps = list(records.read_record(path).steps)
    kinds = [type(step).__name__.removesuffix("Record") for step in steps]
    assert kinds == ["Conform", "Registration", "Regions", "Segmentation", "Measure"]
    assert steps[0].notes == ("3 voxels that were not finite were set to 0.",)


def test_a_failure_says_which_step_failed(tmp_path):
    write_failure(tmp_path, ENTITIES, "it broke", "sub-1/log/crash.txt")
    record = records.read_record(derivative_path(tmp_path, ENTITIES, "record"))
    assert record.status == "failed"
    assert record.failure == records.Failure(
        step="conform", message="it broke", crash_file="sub-1/log/crash.txt"
    )
    assert list(record.steps) == []


@pytest.mark.parametrize(
    "keys",
    [
        ("steps", "regions"),
        ("steps", "measure", "flags"),
        ("steps", "measure", "quality", "head_turn"),
        ("steps", "conform", "sidecar_signs"),
        ("options", "tta"),
    ],
)
def test_what_an_older_version_did_not_write_is_missing_without_an_error(path, keys):
    change(path, keys, None)
    records.read_record(path)


def test_what_a_newer_version_adds_is_passed_over(path):
    before = records.read_record(path)
    change(path, ("steps", "skull"), {"thickness_mm": 7})
    change(path, ("steps", "conform", "colour"), "grey")
    change(path, ("steps", "measure", "quality", "beauty"), 1.0)
    assert records.read_record(path) == before


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("status",), "odd", r"Invalid enum value 'odd' - at `\$.status`"),
        (("steps",), [], r"Expected `object`, got `array` - at `\$.steps`"),
        (("options", "threshold"), "low", r"got `str` - at `\$.options.threshold`"),
        (("options", "threshold"), None, "missing required field `threshold` - at `.*options`"),
        (("steps", "measure", "quality", "wm_snr"), "high", "at `.*measure.quality.wm_snr`"),
        (("steps", "measure", "flags"), "many", "at `.*measure.flags`"),
        (
            ("steps", "measure", "flags"),
            [{"name": "x"}],
            "missing required field `figure` - at `.*measure.flags.{3}`",
        ),
        (("steps", "regions", "rule"), "5mm", "Invalid enum value '5mm' - at `.*regions.rule`"),
    ],
)
def test_a_damaged_record_is_refused_by_file_and_field(path, keys, value, said):
    change(path, keys, value)
    with pytest.raises(ProcessingError, match=said) as error:
        records.read_record(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith(
        f"; expected a record as version {__version__} writes it: process the scan again"
    )


@pytest.mark.parametrize("content", [b"", b'{"status": "compl', b"\xff\xfe", b"[]"])
def test_what_is_no_record_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ProcessingError, match="process the scan again"):
        records.read_record(path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(ProcessingError, match=r"record.json: cannot be read \(No such file"):
        records.read_record(tmp_path / "record.json")
