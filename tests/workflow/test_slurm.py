"""A run through SLURM's plugins, with commands that run each job the moment it is submitted."""

import stat

import numpy as np
import pytest
from slurm_cluster import python_path
from workflow_fakes import (
    Listener,
    head,
    install,
    install_in_workers,
    make_config,
    make_dataset,
    make_template,
    process_scans,
    scans_of,
    write_flair,
)

# A job whose dependency failed never begins, as with --kill-on-invalid-dep.
SBATCH = """#!/bin/bash
for argument; do
    [[ $argument == --dependency=afterok:* ]] && before=${{argument#*afterok:}}
    [[ $argument == --output=* ]] && log=${{argument#*=}}
    script=$argument
done
number=$(($(ls "{folder}" | wc -l) + 1))
code=1
for other in ${{before//:/ }}; do
    [[ $(cat "{folder}/job-$other") == 0 ]] || never=yes
done
if [[ -z $never ]]; then
    bash "$script" >"$log" 2>&1
    code=$?
fi
echo $code >"{folder}/job-$number"
echo $number
"""
NOTHING = "#!/bin/bash\n"


@pytest.fixture
def idle_cluster(tmp_path, repository, monkeypatch):
    """Stand-ins for SLURM's commands: no job is ever seen waiting or running."""
    commands, jobs = tmp_path / "commands", tmp_path / "jobs"
    jobs.mkdir()
    commands.mkdir()
    texts = {"sbatch": SBATCH.format(folder=jobs), "squeue": NOTHING, "scancel": NOTHING}
    for name, text in {**texts, "scontrol": NOTHING}.items():
        path = commands / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    monkeypatch.setenv("PYTHONPATH", python_path(repository, repository / "tests" / "support"))


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["SLURM", "SLURMGraph"])
def test_jobs_too_quick_to_be_seen_running_keep_their_reasons(
    idle_cluster, tmp_path, monkeypatch, plugin
):
    install(monkeypatch, tmp_path)
    install_in_workers(monkeypatch)
    make_dataset(tmp_path / "data", "sub-01", "sub-02")
    write_flair(tmp_path / "data", "sub-01", np.zeros_like(head()))
    write_flair(tmp_path / "data", "sub-02", head(lesions=False))  # its bias field is killed
    path = tmp_path / "plugin.yml"
    path.write_text(f"plugin: {plugin}\n")
    config = make_config(tmp_path / "data", tmp_path / "out", tmp_path / "work", plugin_file=path)
    scans = scans_of(tmp_path / "data")
    empty, killed = process_scans(config, scans, make_template(tmp_path / "store"), Listener())
    flair = tmp_path / "data/sub-01/anat/sub-01_FLAIR.nii.gz"
    assert empty.reason == f"{flair}: every voxel is zero; there is no image to process"
    assert killed.reason.startswith("SLURM job ")
    assert "of step bias_field ended without a result: killed by signal 9" in killed.reason
