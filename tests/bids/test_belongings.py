"""What belongs to a FLAIR, of the data set and of others."""

import pytest

from bagau_bids.bids.belongings import Belongings, Given, find_belongings
from bagau_bids.bids.scans import Scan
from bagau_bids.config import Processing
from bagau_bids.errors import InputImageError

ENTITIES = {"sub": "01", "ses": "2"}
PLACE = "sub-01/ses-2/anat"


@pytest.fixture
def put(tmp_path):
    def put(root, name):
        path = tmp_path / root / PLACE / f"sub-01_ses-2_{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    return put


@pytest.fixture
def find(tmp_path, put):
    scan = Scan(put("data", "FLAIR.nii.gz"), ENTITIES)

    def find(*, with_t1w=False, **options):
        found = find_belongings(scan, tmp_path / "data", Processing(**options), with_t1w=with_t1w)
        assert (found.scan, found.source) == (scan, f"{PLACE}/sub-01_ses-2_FLAIR.nii.gz")
        return found

    return find


def test_flair_alone_has_nothing_else(find):
    found = find()
    assert found == Belongings(found.scan, found.source)


def test_everything_is_found_with_its_uri(find, put, tmp_path):
    sidecar, t1w = put("data", "FLAIR.json"), put("data", "T1w.nii.gz")
    mask = put("my-masks", "desc-brain_mask.nii.gz")
    lesions = put("strokes", "label-infarct_mask.nii.gz")
    beside = put("data", "label-lesion_roi.nii.gz")
    folders = {
        "derivatives": (tmp_path / "my-masks",),
        "known_lesions": (tmp_path / "strokes",),
    }
    found = find(with_t1w=True, **folders)
    assert found.sidecars == (sidecar,)
    assert found.t1w == Given(t1w, f"bids:raw:{PLACE}/{t1w.name}")
    assert found.brain_mask == Given(mask, f"bids:mymasks:{PLACE}/{mask.name}")
    assert found.known_lesions.path == lesions
    assert found.known_lesions.uri == f"bids:strokes:{PLACE}/{lesions.name}"
    assert str(beside) in found.known_lesions.note
    assert find(**folders).t1w is None


def test_folder_of_known_lesions_gives_no_brain_mask(find, put, tmp_path):
    put("strokes", "desc-brain_mask.nii.gz")
    assert find(known_lesions=(tmp_path / "strokes",)).brain_mask is None


def test_lesions_beside_the_flair_are_of_the_raw_data_set(find, put):
    path = put("data", "label-lesion_roi.nii.gz")
    assert find().known_lesions == Given(path, f"bids:raw:{PLACE}/{path.name}")
    assert find(ignore_lesion_roi=True).known_lesions is None


def test_t1w_that_is_wanted_and_missing_is_an_error(find):
    with pytest.raises(InputImageError, match="no T1w beside this FLAIR"):
        find(with_t1w=True)
