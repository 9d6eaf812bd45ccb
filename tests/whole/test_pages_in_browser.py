"""Every kind of page in a real browser without a network: whole, quiet, and the viewer reacts."""

import io
import re

import nibabel as nib
import numpy as np
import pytest
from browser import OpenedPage, started_browser
from experiment_folder import write_experiment
from fake_derivatives import drawn_head, write_failure, write_scan, write_transform
from PIL import Image

from bagau_bids.bids.description import write_citation
from bagau_bids.config import Processing
from bagau_bids.evaluation.pairs import MaskPair
from bagau_bids.evaluation.scoring import evaluate_pairs
from bagau_bids.evaluation.tables import case_table, summary_table, write_tables
from bagau_bids.experiments.report import write_experiment_table
from bagau_bids.preprocessing.transforms import TemplateTransform
from bagau_bids.reports.evaluation import Comparison, write_evaluation_page
from bagau_bids.reports.group import write_group
from bagau_bids.reports.participant import write_participant_report

pytestmark = pytest.mark.slow

WIDTHS = (375, 768, 1280, 1920)  # a telephone, a tablet, screens

PAGES = {
    "thick slices": "sub-01.html",
    "no lesions": "sub-02.html",
    "failed": "sub-03.html",
    "crash files alone": "sub-04.html",
    "three planes, two sessions": "sub-05.html",
    "overview of many sessions": "sub-06.html",
    "one of many sessions": "sub-06_ses-5.html",
    "group": "group_FLAIR.html",
    "evaluation": "evaluation/evaluation_FLAIR.html",
    "experiment": "experiment/table.html",
}


@pytest.fixture(scope="module")
def browser():
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def study(browser, tmp_path_factory):
    """A folder with a page of every kind; asks for the browser first, so as not to be in vain."""
    folder = tmp_path_factory.mktemp("study")
    cube = drawn_head(shape=(32, 38, 30), spacing=(6.0, 6.0, 6.0))
    write_scan(folder, {"sub": "01"})
    write_scan(folder, {"sub": "02"}, drawn_head(n_lesions=0))
    crash = folder / "sub-03" / "log" / "run" / "crash-conform.txt"
    for path in (crash, folder / "sub-04" / "log" / "run" / "crash-measure.txt"):
        path.parent.mkdir(parents=True)
        path.write_text("Traceback <of> " + "a very long line " * 40)
    write_failure(folder, {"sub": "03"}, "ends early <here>", crash.relative_to(folder))
    for session in ("1", "2"):
        scan = {"sub": "05", "ses": session}
        write_scan(folder, scan, cube)
        write_transform(folder, scan, TemplateTransform(np.eye(4)))
    small = drawn_head(shape=(24, 28, 8), spacing=(8.0, 8.0, 18.0))
    for session in range(1, 6):
        write_scan(folder, {"sub": "06", "ses": str(session)}, small)
    write_citation(folder, Processing())
    for label in ("01", "02", "03", "04", "05", "06"):
        write_participant_report(folder, label)
    write_group(folder)
    evaluate(folder / "evaluation")
    (folder / "experiment").mkdir()
    write_experiment(folder / "experiment")
    write_experiment_table(folder / "experiment")
    return folder


def evaluate(folder):
    folder.mkdir()
    flair, affine, _, _, probability = drawn_head()
    images = {
        "reference": (probability > 0).astype(np.uint8),
        "result": np.roll(probability > 0, 1, axis=0).astype(np.uint8),
        "flair": flair,
    }
    paths = {name: folder / f"{name}.nii.gz" for name in images}
    for name, data in images.items():
        nib.Nifti1Image(data, affine).to_filename(paths[name])
    pairs = {"sub-1": MaskPair("sub-1", paths["reference"], paths["result"], {"sub": "1"})}
    cases = case_table(evaluate_pairs(pairs.values()))
    summary = summary_table(cases, resamples=50)
    write_tables(folder, cases, summary)
    comparison = Comparison(
        paths["reference"].parent, paths["result"].parent, pairs, {"sub-1": paths["flair"]}
    )
    write_evaluation_page(folder / "evaluation_FLAIR.html", cases, summary, comparison)


@pytest.fixture
def open_page(browser, study):
    """Opens one of the pages in a context of its own that is offline."""
    context = browser.new_context(offline=True)
    yield lambda kind: OpenedPage(context, study / PAGES[kind])
    context.close()


@pytest.mark.parametrize("kind", PAGES)
def test_page_is_whole_and_quiet(open_page, kind):
    opened = open_page(kind)
    assert opened.outside == []
    assert opened.complaints == []
    assert opened.broken_pictures() == []
    assert opened.dead_links() == []
    assert opened.overflows(WIDTHS) == {}


def test_page_notices_what_it_looks_for(browser, tmp_path):
    """The checks above do fail on a page with one fault of each sort."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><link rel=icon href='data:,'><img src='data:image/png;base64,AA'>"
        "<script src='http://localhost:9/x.js'></script><script>nothing()</script>"
        "<a href='#gone'>x</a><a href='gone.tsv'>x</a><div style='width: 3000px'>wide</div>"
    )
    context = browser.new_context(offline=True)
    opened = OpenedPage(context, path)
    assert opened.outside == ["http://localhost:9/x.js"]
    assert any("nothing is not defined" in text for text in opened.complaints)
    assert opened.broken_pictures()
    assert opened.dead_links() == ["#gone", "gone.tsv"]
    assert opened.overflow() > 1000
    assert list(opened.overflows((375, 3200))) == [375]
    context.close()


class Viewer:
    """The first viewer of a page."""

    def __init__(self, opened):
        self.page = opened.page
        self.root = self.page.locator(".viewer").first

    def button(self, name):
        return self.root.get_by_role("button", name=name, exact=True)

    def place(self, plane=0):
        """The line below a slice, as it is read out."""
        return self.root.locator(".place").nth(plane).text_content()

    def number(self, plane=0):
        return int(self.place(plane).split(" slice ")[1].split()[0])

    def pixels(self, plane=0):
        """What one sees of a slice, (rows, columns, 3)."""
        shot = self.root.locator(".stack").nth(plane).screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    def red(self):
        """Number of pixels in the colour of the mask."""
        red, green, _ = np.moveaxis(self.pixels(), -1, 0)
        return np.count_nonzero(red - green > 80)


@pytest.fixture
def viewer(open_page):
    return Viewer(open_page("thick slices"))


@pytest.fixture
def cube_viewer(open_page):
    return Viewer(open_page("three planes, two sessions"))


def test_click_switches_the_mask(viewer):
    outlined = viewer.red()
    assert outlined > 20
    viewer.button("filled").click()
    assert viewer.red() > 1.5 * outlined
    viewer.button("FLAIR only").click()
    assert viewer.red() == 0
    assert viewer.button("FLAIR only").get_attribute("aria-pressed") == "true"
    assert viewer.button("filled").get_attribute("aria-pressed") == "false"
    viewer.button("probability").click()
    plain = viewer.pixels()
    assert np.count_nonzero(plain.max(axis=-1) - plain.min(axis=-1) > 80) > 20


@pytest.mark.parametrize("key", ["m", "Space"])
def test_key_switches_the_mask_off_and_on(viewer, key):
    viewer.button("filled").click()
    filled = viewer.red()
    viewer.page.keyboard.press(key)
    assert viewer.red() == 0
    viewer.page.keyboard.press(key)
    assert viewer.red() == filled


def test_keys_change_the_slice(viewer):
    viewer.root.locator(".stack").focus()
    first, seen = viewer.number(), viewer.pixels()
    viewer.page.keyboard.press("ArrowUp")
    assert viewer.number() == first + 1
    assert np.abs(viewer.pixels() - seen).max() > 50
    viewer.page.keyboard.press("ArrowLeft")
    assert viewer.number() == first
    assert (viewer.pixels() == seen).all()
    viewer.page.keyboard.press("End")
    assert viewer.number() == drawn_head()[0].shape[2]
    viewer.page.keyboard.press("ArrowRight")  # there is no further one
    assert viewer.number() == drawn_head()[0].shape[2]
    viewer.page.keyboard.press("Home")
    assert viewer.number() == 1


def test_wheel_and_slider_change_the_slice(viewer):
    stack, slider = viewer.root.locator(".stack"), viewer.root.locator("input.slice")
    stack.scroll_into_view_if_needed()
    first, top = viewer.number(), viewer.page.evaluate("scrollY")
    stack.hover()
    viewer.page.mouse.wheel(0, 100)
    viewer.page.wait_for_function(
        "value => Number(document.querySelector('input.slice').value) === value", arg=first - 2
    )
    assert viewer.number() == first - 1
    assert viewer.page.evaluate("scrollY") == top
    slider.fill("2")
    assert viewer.number() == 3
    slider.focus()
    viewer.page.keyboard.press("ArrowUp")
    assert viewer.number() == 4
    assert slider.get_attribute("aria-valuetext") == viewer.place()


def test_wheel_that_scrolls_the_page_is_not_caught(viewer):
    first = viewer.number()
    viewer.page.evaluate(
        """() => {
          const wheel = (target) => target.dispatchEvent(
            new WheelEvent("wheel", { deltaY: 100, bubbles: true, cancelable: true }));
          wheel(document.querySelector("h1"));
          wheel(document.querySelector(".viewer .stack"));
        }"""
    )
    assert viewer.number() == first


def test_jumps_lead_through_the_slices_with_lesions_only(viewer):
    touched = np.flatnonzero((drawn_head()[4] >= 0.5).any(axis=(0, 1))) + 1
    viewer.root.locator(".stack").focus()
    viewer.page.keyboard.press("Home")
    visited = []
    for _ in range(len(touched) + 2):
        viewer.page.keyboard.press("n")
        visited.append(viewer.number())
    last = int(touched[-1])
    assert visited == [*touched.tolist(), last, last]
    viewer.button("‹ WMH").click()
    assert viewer.number() == touched[-2]
    assert "WMH" in viewer.place()


def test_without_lesions_there_is_nothing_to_jump_to(open_page):
    viewer = Viewer(open_page("no lesions"))
    assert viewer.button("WMH ›").is_disabled()
    first = viewer.number()
    viewer.root.locator(".stack").focus()
    viewer.page.keyboard.press("n")
    assert viewer.number() == first
    assert viewer.red() == 0


def test_brightness_changes_the_picture_and_not_the_outline(viewer):
    red, seen = viewer.red(), viewer.pixels()
    viewer.root.locator("[data-level=brightness]").fill("50")
    dimmed = viewer.pixels()
    grey = seen.max(axis=-1) - seen.min(axis=-1) < 3
    bright = grey & (seen[..., 0] > 100) & (seen[..., 0] < 250)
    assert dimmed[bright][:, 0].mean() == pytest.approx(seen[bright][:, 0].mean() / 2, rel=0.05)
    assert viewer.red() == pytest.approx(red, rel=0.2)


def test_click_in_one_plane_moves_the_others(cube_viewer):
    stack = cube_viewer.root.locator(".stack").first
    box = stack.bounding_box()
    numbers = [cube_viewer.number(plane) for plane in range(3)]
    stack.click(position={"x": box["width"] * 0.25, "y": box["height"] * 0.75})
    moved = [cube_viewer.number(plane) for plane in range(3)]
    assert moved[0] == numbers[0]
    totals = [int(cube_viewer.place(plane).split(" of ")[1].split(",")[0]) for plane in range(3)]
    # A quarter from the left is three quarters to the right; the margins of the head are equal.
    assert moved[2] / totals[2] == pytest.approx(0.7, abs=0.08)
    assert moved[1] / totals[1] == pytest.approx(0.3, abs=0.08)
    for plane in range(3):
        assert cube_viewer.root.locator(".cross").nth(plane).get_attribute("d")


def test_one_plane_can_be_enlarged(cube_viewer):
    small = cube_viewer.root.locator(".stack").nth(2).bounding_box()["width"]
    cube_viewer.button("sagittal").click()
    assert cube_viewer.root.locator(".plane:visible").count() == 1
    assert cube_viewer.root.locator(".stack").nth(2).bounding_box()["width"] > 1.3 * small
    number = cube_viewer.number(2)
    cube_viewer.page.keyboard.press("ArrowUp")
    assert cube_viewer.number(2) == number + 1
    cube_viewer.button("all planes").click()
    assert cube_viewer.root.locator(".plane:visible").count() == 3


def test_viewers_of_one_page_do_not_disturb_each_other(cube_viewer):
    places = cube_viewer.page.locator(".place")
    assert places.count() == 6
    before = [place.inner_text() for place in places.all()]
    cube_viewer.root.locator(".stack").first.focus()
    cube_viewer.page.keyboard.press("ArrowUp")
    after = [place.inner_text() for place in places.all()]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False] + 5 * [True]


def test_finger_swipes_through_the_slices(browser, study):
    context = browser.new_context(offline=True, has_touch=True)
    viewer = Viewer(OpenedPage(context, study / PAGES["thick slices"]))
    first = viewer.number()
    viewer.root.locator(".stack").evaluate(
        """(stack) => {
          const point = (type, x) => stack.dispatchEvent(new PointerEvent(
            type, { pointerType: "touch", clientX: x, bubbles: true }));
          point("pointerdown", 100);
          point("pointermove", 110);
          point("pointermove", 130);
        }"""
    )
    assert viewer.number() == first + 2
    context.close()


def test_without_scripts_a_slice_and_its_outline_are_shown(browser, study):
    context = browser.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto((study / PAGES["thick slices"]).as_uri())
    root = page.locator(".viewer").first
    assert root.locator(".stack img").is_visible()
    assert root.locator(".found").get_attribute("d")
    assert "scrolling needs JavaScript" in root.inner_text()
    assert not root.locator(".tools").is_visible()
    context.close()


def test_the_first_screen_shows_volume_verdict_and_brain(browser, study):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((study / PAGES["thick slices"]).as_uri())
    for part in (".notice.look", ".key dd >> nth=0", ".where", ".glance img >> nth=0"):
        box = page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= 900, part
    page.close()


@pytest.mark.parametrize("kind", ["thick slices", "no lesions"])
def test_a_scan_is_two_sides_on_paper(browser, study, kind):
    page = browser.new_page()
    page.goto((study / PAGES[kind]).as_uri())
    sheets = max(map(int, re.findall(rb"/Count (\d+)", page.pdf(format="A4"))))
    page.close()
    assert sheets <= 2


def test_paper_leaves_out_what_is_for_the_screen(viewer):
    viewer.page.emulate_media(media="print")
    assert not viewer.root.is_visible()
    assert viewer.page.locator(".glance").is_visible()
