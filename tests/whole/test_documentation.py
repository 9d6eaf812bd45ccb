"""Pages and README do what they say: every command in them, and the site that is made of them."""

import contextlib
import gzip
import io
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from challenge_tree import make_release, small_scan
from documented_commands import blocks, commands_of

from bagau_bids.cli import app, parser, toolbox
from bagau_bids.preprocessing.template import expected_paths

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]

# Commands of this project are run in the order of a page, these only parsed by the real parser.
NOT_RUN = {
    "bagau average": "needs checkpoints; tests/training/test_averaging.py makes some",
    "bagau calibrate": "preprocesses scans for minutes; tests/cli/test_calibrate.py runs it",
    "bagau experiment": "trains for hours; tests/cli/test_experiment.py runs a small one",
    "bagau fetch": "needs the network; tests/preprocessing/test_template.py fetches from a fake",
    "bagau pack": "preprocesses scans for minutes; tests/cli/test_pack.py runs it",
    "bagau phantom": "a fixture made its data set; tests/datasets/test_phantom.py runs it",
    "bagau remeasure": "needs edited masks; tests/cli/test_remeasure.py makes some",
    "bagau synthetic-pool": "needs label maps of heads; tests/cli/test_synthetic_pool.py runs it",
    "bagau train": "trains for minutes to hours; tests/cli/test_train.py runs a small training",
    "bagau train-brain-mask": "trains for hours; tests/training/test_brain_mask.py runs one step",
}
# Programs of others: what is said of them here is all that is checked.
OTHERS = {
    "apptainer": "not installed where tests run; what goes to bagau-bids is parsed",
    "bash": "submits the script that the command before it wrote, as test_slurm_cluster.py does",
    "datalad": "not installed where tests run",
    "docker": "not installed where tests run; what goes to bagau-bids is parsed",
    "pip": "needs a package index; `make` installs by the same lines before any test",
    "podman": "not installed everywhere; what goes to bagau-bids is parsed",
    "python3": "makes a virtual environment, as `make` does before any test",
}
EXIT_CODES = {  # of commands that do not end with 0, as the page says
    "manual-o3": 1,
}
SEGMENTING = ["--dry-run", "--offline"]  # added to runs of the participant level


@pytest.fixture(scope="module")
def root(processed_phantom, tmp_path_factory):
    """Folder with everything that pages take for given, below it instead of below ``/``."""
    root = tmp_path_factory.mktemp("root")
    bids, derivatives = root / "demo" / "bids", root / "demo" / "derivatives"
    shutil.copytree(processed_phantom.bids, bids)
    shutil.copytree(processed_phantom.derivatives, derivatives)
    shutil.copytree(derivatives, root / "out")
    (root / "derivatives").symlink_to(root / "out")
    _data_set(bids, root / "data")
    _labelled(root)
    weights = REPOSITORY / "bagau_bids" / "data" / "weights"
    (root / "out" / "training").mkdir()
    for name in ("training/best", "calibrated"):
        for suffix in (".safetensors", ".json"):
            shutil.copy(weights / f"small{suffix}", root / "out" / f"{name}{suffix}")
    mask = next((bids / "derivatives").rglob("*_label-WMH_mask.nii.gz"))
    for name in ("reference_mask.nii.gz", "my_mask.nii.gz"):
        shutil.copy(mask, root / name)
    (root / "data" / "scans").mkdir()
    shutil.copy(bids / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz", root / "data" / "scans")
    for name in ("scans/patient1", "p1/FLAIR", "p2/FLAIR"):  # for `bagau segment`
        (root / name).parent.mkdir()
        shutil.copy(bids / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz", root / f"{name}.nii.gz")
        if name.startswith("p"):
            shutil.copy(mask, (root / name).parent / "drawn.nii.gz")
    choice = {"flair": {"acquisition": "3D", "run": [1, 2]}}
    (root / "filter.json").write_text(json.dumps(choice), encoding="utf-8")
    plugin = "plugin: Linear\n"  # the page's own would submit
    (root / "slurm.yml").write_text(plugin, encoding="utf-8")
    store = root / "project" / "templateflow"  # `bagau fetch` is not run
    for path in expected_paths("MNI152NLin2009cSym", store).values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b""))
    (root / "study").symlink_to(root / "data")
    (root / "bagau-bids.sif").touch()  # as `apptainer build` leaves it; only looked for
    (root / "experiments").symlink_to(REPOSITORY / "experiments")
    return root


def _data_set(bids, data):
    """``/data``: the phantom's scan three times, once in a session, with masks."""
    shutil.copytree(bids, data)
    shutil.move(data / "derivatives" / "phantom-truth", data / "derivatives" / "manual")
    drawn = next((data / "derivatives" / "manual").rglob("sub-01*_label-WMH_mask.nii.gz"))
    tumour = data / "derivatives" / "tumours" / "sub-01" / "anat"
    tumour.mkdir(parents=True)
    shutil.copy(drawn, tumour / "sub-01_label-tumour_mask.nii.gz")
    flair = data / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    for copy in ("sub-02/anat/sub-02", "sub-03/ses-1/anat/sub-03_ses-1_acq-3D_run-1"):
        target = data / f"{copy}_FLAIR.nii.gz"
        target.parent.mkdir(parents=True)
        shutil.copy(flair, target)


def _labelled(root):
    """Labelled data of other layouts: the challenge's folders with masks to judge, and ABVIB."""
    release = make_release(root / "data" / "wmh", map(small_scan, range(6)))
    for case in release.glob("t*/**/wmh.nii.gz"):
        name = f"sub-{int(case.parent.name):03d}{''.join(_site(case.parent, release))}"
        name = f"{name}/anat/{name}_space-orig_label-WMH_mask.nii.gz"
        (root / "results" / name).parent.mkdir(parents=True)
        reference = nib.load(case)
        lesions = (np.asarray(reference.dataobj) == 1).astype(np.uint8)
        nib.Nifti1Image(lesions, reference.affine).to_filename(root / "results" / name)
    for folder, image in zip(("flair", "masks"), small_scan(7), strict=True):
        (root / "data" / "abvib" / folder).mkdir(parents=True)
        image.to_filename(root / "data" / "abvib" / folder / "S01.nii")
    (root / "data" / "table.tsv").write_text(
        "flair\tmask\nabvib/flair/S01.nii\tabvib/masks/S01.nii\n", encoding="utf-8"
    )
    (root / "data" / "about.json").write_text('{"Name": "Mine"}', encoding="utf-8")


def _site(folder, release):
    """Site and scanner of a case, as labels of participants have them."""
    _, site, *scanner = folder.parent.relative_to(release).parts
    return site, *("Philips" if one.startswith("Philips") else one for one in scanner)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_pages_work(page, root, monkeypatch):
    for block in blocks(page.read_text(encoding="utf-8")):
        for command in commands_of(block, root):
            monkeypatch.chdir(command.folder)
            code, said = carry_out(list(command.words), root)
            expected = next((c for part, c in EXIT_CODES.items() if part in str(command)), 0)
            assert code == expected, f"{page.name}: {command}\n{said}"


def carry_out(words, root):
    """Run, or at least check, one command; return its exit code and what it said."""
    program, *arguments = words
    if program in ("bagau", "bagau-bids"):
        return _run_ours(program, arguments, root)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.M)
        return int(not set(arguments) <= set(targets)), f"targets: {targets}"
    if program == "python":
        statements = arguments[0] == "-c"
        return _run_statements(*arguments[1:]) if statements else _check_script(*arguments)
    if program not in OTHERS:
        return 127, f"{program}: not a program that pages may use; expected one of {[*OTHERS]}"
    return _check_inside(arguments)


def _run_ours(program, arguments, root):
    name = " ".join([program, *arguments[:1]])
    if name in NOT_RUN and "--help" not in arguments and "--compare" not in arguments:
        chosen = arguments[0]
        module = toolbox.load_subcommand(toolbox.variant(chosen, arguments))
        whole = toolbox.build_parser(chosen, module)
        return _outcome(lambda: whole.parse_args(arguments) and 0)
    if name == "bagau segment":
        arguments = [*arguments, *SEGMENTING, "--template", "ICBM152NLin2009aSym"]
    if program == "bagau":
        with pytest.MonkeyPatch.context() as patch:
            if name == "bagau slurm":  # tells at once where tasks would find no template
                patch.setenv("TEMPLATEFLOW_HOME", str(root / "project" / "templateflow"))
            return _outcome(lambda: toolbox.main(arguments))
    if "participant" in arguments and not {"--reports-only", "--boilerplate-only"} & {*arguments}:
        arguments = [*arguments, *(one for one in SEGMENTING if one not in arguments)]
        if "--template" not in arguments:
            arguments += ["--template", "ICBM152NLin2009aSym"]
    if not {"-w", "--work-dir"} & {*arguments}:
        arguments += ["-w", str(root / "work")]
    return _outcome(lambda: app.main(arguments))


def _outcome(run):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = run() or 0
        except SystemExit as end:
            code = end.code or 0
    return code, said.getvalue()


def _run_statements(text, *arguments):
    """Run what a page gives to ``python -c``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", *arguments])
        return _outcome(lambda: exec(text, {"__name__": "__main__"}))


def _check_script(script, *arguments):
    """Whether a script of the repository is there and knows the options that it is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, "--help"])
        patch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])
        code, text = _outcome(
            lambda: runpy.run_path(str(REPOSITORY / script), run_name="__main__") and 0
        )
    unknown = [word for word in arguments if word.startswith("--") and word not in text]
    return code or len(unknown), f"{script} does not know {unknown}\n{text}"


def _check_inside(arguments):
    """Parse what a container's command line hands on to ``bagau-bids``."""
    image = next((i for i, word in enumerate(arguments) if _is_image(arguments, i)), None)
    if "run" not in arguments or image is None:
        return 0, ""
    return _outcome(lambda: parser.build_parser().parse_args(arguments[image + 1 :]) and 0)


def _is_image(arguments, index):
    word = arguments[index]
    return word.endswith(".sif") or (word == "bagau-bids" and arguments[index - 1] != "-t")


def test_every_subcommand_is_shown_in_a_page():
    text = "\n".join(block for page in PAGES for block in blocks(page.read_text("utf-8")))
    assert [name for name in toolbox.SUBCOMMANDS if f"bagau {name}" not in text] == []


def test_a_program_that_is_not_known_fails(tmp_path):
    (command,) = commands_of("frobnicate --all /data  # comment\n", tmp_path)
    assert command.words == ("frobnicate", "--all", f"{tmp_path}/data")
    code, said = carry_out(list(command.words), tmp_path)
    assert code == 127
    assert "frobnicate" in said


def test_a_wrong_option_fails_also_in_a_command_that_is_not_run(tmp_path):
    code, said = carry_out(["bagau", "train", "/a", "/b", "--masks", "/m", "--no-such"], tmp_path)
    assert code == 2
    assert "--no-such" in said


def test_commands_are_read_as_bash_reads_them(tmp_path):
    block = 'cd /\nfor n in 1 2; do\n  bagau models "$(bagau x)" \\\n    $n > list\ndone\n'
    found = [command.words for command in commands_of(block.replace("cd /\n", ""), tmp_path)]
    once = [("bagau", "x"), ("bagau", "models", "", "1")]
    assert found == [*once, ("bagau", "x"), ("bagau", "models", "", "2")]


def test_options_named_in_pages_exist():
    known = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", _all_help()))
    for script in (REPOSITORY / "benchmarks").glob("*.py"):
        known |= set(re.findall(r"\"(--[a-z][\w-]*)\"", script.read_text(encoding="utf-8")))
    foreign = {"--index-url", "--nv", "--gpus", "--userns", "--bind", "--gres"}  # of others
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        named = set(re.findall(r"`(--[a-z][\w-]*)", text))
        assert named - known - foreign == set(), page.name


def _all_help():
    texts = [parser.build_parser().format_help()]
    for name in toolbox.SUBCOMMANDS:
        module = toolbox.load_subcommand(name)
        texts.append(_outcome(lambda n=name, m=module: _print_help(n, m))[1])
    texts.append(_outcome(lambda: toolbox.main(["train", "--stream", "P", "--help"]))[1])
    texts.append(_outcome(lambda: toolbox.main(["import", "pairs", "--help"]))[1])
    texts.append(_outcome(lambda: toolbox.main(["import", "folder", "--help"]))[1])
    texts.append(_outcome(lambda: toolbox.main(["import", "wmh-challenge", "--help"]))[1])
    return "\n".join(texts)


def _print_help(name, module):
    toolbox.build_parser(name, module).parse_args([name, "--help"])
