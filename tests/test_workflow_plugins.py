"""Which nipype plugin a run gets, and the refusal of those that cannot be used."""

import pytest

from bagau_bids.config import Resources
from bagau_bids.errors import UsageError
from bagau_bids.workflow import plugins
from bagau_bids.workflow.plugins import (
    SturdyMultiProcPlugin,
    available_memory_gb,
    choose_plugin,
    close_plugin,
    read_plugin_file,
    runs_in_this_process,
)


def told(node, status):
    pass


def plugin_of(tmp_path, text, **resources):
    path = tmp_path / "plugin.yml"
    path.write_text(text)
    return choose_plugin(Resources(plugin_file=path, **resources), told)


def test_one_process_runs_in_the_main_process():
    resources = Resources(nprocs=1)
    assert runs_in_this_process(resources)
    plugin = choose_plugin(resources, told)
    assert type(plugin).__name__ == "LinearPlugin"
    assert plugin.plugin_args["status_callback"] is told


def test_debugger_runs_in_the_main_process():
    assert runs_in_this_process(Resources(nprocs=4), ("pdb",))
    plugin = choose_plugin(Resources(nprocs=4), told, ("pdb",))
    assert type(plugin).__name__ == "LinearPlugin"


@pytest.mark.parametrize(("device", "slots"), [("cpu", 0), ("cuda:1", 1)])
def test_several_processes_share_what_was_given(device, slots):
    plugin = choose_plugin(Resources(nprocs=3, mem_gb=5.0, device=device), told)
    assert isinstance(plugin, SturdyMultiProcPlugin)
    assert (plugin.processors, plugin.memory_gb, plugin.n_gpu_procs) == (3, 5.0, slots)
    assert plugin.raise_insufficient is False
    close_plugin(plugin)


def test_plugin_file_overrides(tmp_path):
    plugin = plugin_of(tmp_path, "plugin: MultiProc\nplugin_args: {n_procs: 2}\n", nprocs=8)
    assert isinstance(plugin, SturdyMultiProcPlugin)
    assert plugin.processors == 2
    close_plugin(plugin)


def test_other_plugins_of_nipype_are_taken(tmp_path):
    plugin = plugin_of(tmp_path, "plugin: SLURM\nplugin_args: {sbatch_args: '-p short'}\n")
    assert type(plugin).__name__ == "SLURMPlugin"
    assert plugin.plugin_args["sbatch_args"] == "-p short"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plugin: Nonsense\n", "plugin Nonsense is not known; expected one of .*MultiProc"),
        ("plugin: SLURMGraph\n", "cannot say how it ended"),
        ("plugin_args: {}\n", "names no plugin"),
        ("- a\n", "names no plugin"),
        ("plugin: MultiProc\nplugin_args: 3\n", "plugin_args is a int"),
        ("plugin: [\n", "cannot be read as YAML"),
    ],
)
def test_unusable_plugin_file_is_refused(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        plugin_of(tmp_path, text)


def test_missing_plugin_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        read_plugin_file(tmp_path / "none.yml")


def test_memory_of_the_control_group_counts(tmp_path, monkeypatch):
    whole = available_memory_gb()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(plugins, "CGROUP_LIMITS", (tmp_path / "none", limit))
    limit.write_text("max\n")
    assert available_memory_gb() >= whole
    limit.write_text(str(2 * 1024**3))
    assert available_memory_gb() == 2
