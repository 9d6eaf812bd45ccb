"""How jobs are asked for and watched, with stand-ins for SLURM's commands."""

import json
import os
import stat
from pathlib import Path

import pytest
from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits
from nipype.pipeline import engine as pe
from nipype.utils.filemanip import savepkl

from bagau_bids.errors import MissingResourceError, UsageError
from bagau_bids.workflow.slurm_queue import Queue, RefusedError, Settings

SBATCH = """#!/bin/bash
echo "$@" >>"{folder}/asked"
rm "{folder}/refuses" 2>/dev/null && echo "sbatch: error: too many" >&2 && exit 1
echo "7;cluster"
"""
SQUEUE = '#!/bin/bash\necho ask >>"{folder}/asks"\ncat "{folder}/queue"\n'
SCONTROL = '#!/bin/bash\ncat "{folder}/job"\n'
SCANCEL = '#!/bin/bash\necho "$@" >>"{folder}/cancelled"\n'


class GpuInputSpec(BaseInterfaceInputSpec):
    use_gpu = traits.Bool(False, usedefault=True)


class Gpu(SimpleInterface):
    input_spec = GpuInputSpec
    output_spec = TraitedSpec


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Folder of the stand-ins, first in PATH; files in it say what they answer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (
        ("sbatch", SBATCH),
        ("squeue", SQUEUE),
        ("scontrol", SCONTROL),
        ("scancel", SCANCEL),
    ):
        path = folder / name
        path.write_text(text.format(folder=folder))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (folder / "queue").write_text("7 RUNNING\n8 PENDING\n")
    (folder / "job").write_text("JobId=7 JobState=COMPLETED ExitCode=0:0\n")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def step(tmp_path):
    node = pe.Node(Gpu(use_gpu=True), "segmentation", n_procs=3, mem_gb=1.5)
    node.base_dir = str(tmp_path / "work")
    node._hierarchy = "top.sub_01_wf"
    node.config = {"execution": {"matplotlib_backend": "Agg"}}
    return node


def asked(fake):
    return (fake / "asked").read_text().splitlines()[-1].split()


def of(**arguments):
    return Queue(Settings.of({"retry_timeout": 0, "poll_interval": 0, **arguments}, Path("p.yml")))


def submitted(queue, step, after=()):
    return queue.submit(step, updatehash=False, after=after)


def finish(job, code, result="done"):
    job.folder.mkdir(parents=True, exist_ok=True)
    job.exit_file.write_text(f"{code}\n")
    if result:
        savepkl(str(job.folder / "result_segmentation.pklz"), result)


def test_job_asks_for_what_its_step_declares(fake, step):
    job = submitted(of(), step, after=("4", "5"))
    assert job.number == "7"
    words = asked(fake)
    for option in (
        "--cpus-per-task=3",
        "--mem=1536M",
        "--gres=gpu:1",
        "--dependency=afterok:4:5",
        "--kill-on-invalid-dep=yes",
        f"--output={job.log}",
    ):
        assert option in words
    step.inputs.use_gpu = False
    submitted(of(), step)
    assert not any("gpu" in word for word in asked(fake))


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        ({"sbatch_args": "--mem-per-cpu 2G"}, "--mem="),
        ({"sbatch_args": "-c4"}, "--cpus-per-task"),
        ({"sbatch_args": "-p gpu --gpus=a100:1"}, "--gres"),
        ({"template": "#!/bin/bash\n#SBATCH --mem=9G"}, "--mem"),
        ({"sbatch_args": "--output=/dev/null"}, "--output=/work"),
    ],
)
def test_what_the_user_asks_for_counts(fake, step, arguments, absent):
    job = submitted(of(**arguments), step)
    assert not any(word.startswith(absent) for word in asked(fake)[:-1])
    given = arguments.get("sbatch_args", "").split()
    assert asked(fake)[-len(given) - 1 : -1] == given
    assert job.script.read_text().startswith(arguments.get("template", "#!/bin/bash"))


@pytest.mark.parametrize("option", ["--export=ALL", "--exclusive", "--comment=-o"])
def test_options_that_look_like_others_keep_the_log(fake, step, option):
    job = submitted(of(sbatch_args=option), step)
    assert f"--output={job.log}" in asked(fake)


def test_template_may_be_a_file(fake, step, tmp_path):
    (tmp_path / "head.sh").write_text("#!/bin/bash\nmodule load x\n")
    job = submitted(of(template=str(tmp_path / "head.sh")), step)
    assert job.script.read_text().startswith("#!/bin/bash\nmodule load x\n")


def test_refused_submission_is_tried_again_then_told(fake, step):
    (fake / "refuses").touch()
    assert submitted(of(max_tries=1), step).number == "7"
    (fake / "refuses").touch()
    with pytest.raises(RefusedError, match="sbatch: error: too many .the command was: sbatch"):
        submitted(of(max_tries=0), step)


def test_squeue_is_asked_once_for_all_jobs_and_not_at_every_look(fake, step):
    queue = of(poll_interval=1000)
    job = submitted(queue, step)
    assert [queue.outcome(job, 0) for _ in range(5)] == [None] * 5
    assert (fake / "asks").read_text() == "ask\n"


def test_step_is_done_when_exit_code_and_result_are_there(fake, step):
    queue = of()
    job = submitted(queue, step)
    assert queue.outcome(job, 0) is None
    finish(job, 0)
    assert queue.outcome(job, 0) == ""


def test_step_that_raised_says_why(fake, step):
    queue = of()
    job = submitted(queue, step)
    trace = ["Traceback\n", "ValueError: no\n"]
    finish(job, 0, {"result": None, "hostname": "n", "traceback": trace})
    assert queue.outcome(job, 0) == "".join(trace)
    assert not list(job.folder.glob("result_*"))


def test_result_of_an_earlier_run_is_not_taken(fake, step):
    folder = Path(step.output_dir())
    folder.mkdir(parents=True)
    (folder / "result_segmentation.pklz").write_bytes(b"old")
    queue = of()
    job = submitted(queue, step)
    (fake / "queue").write_text("")
    (fake / "job").write_text("JobState=CANCELLED ExitCode=0:0\n")
    assert "step segmentation ended without a result: CANCELLED" in queue.outcome(job, 1000)


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        ("JobState=TIMEOUT ExitCode=0:15", "", "TIMEOUT by signal 15"),
        ("JobState=OUT_OF_MEMORY ExitCode=0:125", "", "OUT_OF_MEMORY"),
        ("JobState=FAILED ExitCode=0:9", "", "FAILED by signal 9"),
        ("JobState=FAILED ExitCode=137:0", "137", "killed by signal 9"),
    ],
)
def test_lost_job_is_told_at_once_and_why(fake, step, state, code, words):
    queue = of()
    job = submitted(queue, step)
    (fake / "queue").write_text("8 PENDING\n")
    (fake / "job").write_text(state)
    if code:
        finish(job, code, result=None)
    job.log.write_text("working\nslurmstepd: error: Exceeded memory\n\n")
    reason = queue.outcome(job, 1000)
    assert f"SLURM job 7 of step segmentation ended without a result: {words}" in reason
    assert "its last words were: slurmstepd: error: Exceeded memory" in reason
    assert json.loads((job.folder / "failure.json").read_text())["message"] == reason


def test_result_that_a_slow_file_system_hides_is_waited_for(fake, step):
    queue = of()
    job = submitted(queue, step)
    (fake / "queue").write_text("")
    assert queue.outcome(job, 1000) is None
    finish(job, 0)
    assert queue.outcome(job, 1000) == ""


def test_job_of_which_nothing_is_known_is_given_up(fake, step):
    queue = of()
    job = submitted(queue, step)
    (fake / "queue").write_text("")
    (fake / "job").write_text("")
    assert queue.outcome(job, 1000) is None
    assert "SLURM does not know it any more" in queue.outcome(job, 0)


def test_busy_controller_changes_nothing(fake, step):
    queue = of()
    job = submitted(queue, step)
    (fake / "squeue").write_text("#!/bin/bash\nexit 1\n")
    assert queue.outcome(job, 0) is None


def test_what_is_open_is_cancelled(fake, step):
    queue = of()
    submitted(queue, step)
    queue.cancel()
    queue.cancel()
    assert (fake / "cancelled").read_text() == "7\n"


def test_missing_commands_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingResourceError, match="sbatch, squeue, scancel: not found"):
        Queue(Settings())


def test_unknown_argument_is_refused():
    with pytest.raises(UsageError, match="p.yml: plugin_args has sbatch_arg; the SLURM plugins"):
        of(sbatch_arg="-p x")
