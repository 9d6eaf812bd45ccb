"""Which nipype plugin a run gets, and the refusal of those that cannot be used."""

import itertools
import subprocess
import sys

import pytest
from exclusive_step import Exclusive
from nipype.pipeline import engine as pe
from nipype.utils.profiler import get_system_total_memory_gb

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
    settle_device,
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


@pytest.mark.parametrize(("device", "slots"), [("cpu", 0), ("cuda:0", 1)])
def test_legacy_multiproc_is_run_as_multiproc(tmp_path, device, slots):
    text = "plugin: LegacyMultiProc\nplugin_args: {maxtasksperchild: 1}\n"
    plugin = plugin_of(tmp_path, text, nprocs=2, mem_gb=5.0, device=device)
    assert isinstance(plugin, SturdyMultiProcPlugin)
    assert (plugin.processors, plugin.memory_gb, plugin.n_gpu_procs) == (2, 5.0, slots)
    close_plugin(plugin)


@pytest.mark.parametrize(
    ("device", "settled"), [("auto", "cpu"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_batch_system_is_where_the_device_is(tmp_path, device, settled):
    path = tmp_path / "plugin.yml"
    path.write_text("plugin: SLURM\n")
    assert settle_device(Resources(plugin_file=path, device=device)) == settled


@pytest.mark.parametrize(
    ("files", "visible"),
    [((), "cpu"), (("null", "shm"), "cpu"), (("nvidiactl",), "cuda:7"), (("dxg",), "cuda:7")],
)
def test_pytorch_is_asked_for_a_gpu_only_where_a_driver_is(tmp_path, monkeypatch, files, visible):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr("bagau_bids.workflow.plugins.DEVICES", tmp_path)
    monkeypatch.setattr("bagau_bids.workflow.plugins.sys.platform", "linux")
    monkeypatch.setattr(
        "bagau_bids.network.inference.choose_device", {"auto": "cuda:7", "cuda:1": "cuda:1"}.get
    )
    assert settle_device(Resources(device="auto")) == visible
    assert settle_device(Resources(device="cuda:1")) == "cuda:1"
    monkeypatch.setattr("bagau_bids.workflow.plugins.sys.platform", "win32")
    assert settle_device(Resources(device="auto")) == "cuda:7"


def test_pytorch_is_not_loaded_to_settle_a_device_or_to_check_weights():
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bagau_bids.config import Resources\n"
        "from bagau_bids.network.cards import find_networks, read_weights\n"
        "from bagau_bids.workflow import plugins\n"
        "plugins.DEVICES = Path('nowhere')\n"
        "print(plugins.settle_device(Resources(device='auto')))\n"
        "networks = find_networks((), 'small')\n"
        "read_weights(networks.brain.path, networks.brain.card)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["cpu", "False"], done.stderr


@pytest.mark.slow
def test_a_scan_is_finished_before_the_next_is_begun(tmp_path):
    """So that the first results are there early, and work folders do not pile up."""
    begun = []
    plugin = choose_plugin(
        Resources(nprocs=2, mem_gb=9.0, device="cuda:0"),
        lambda node, status: begun.append(node.fullname) if status == "start" else None,
    )
    together = pe.Workflow("all", base_dir=tmp_path)
    for scan in ("b", "a", "c"):
        one = pe.Workflow(scan)
        steps = [
            pe.Node(Exclusive(card=str(tmp_path / "card")), f"step{number}") for number in range(3)
        ]
        for first, second in itertools.pairwise(steps):
            one.connect(first, "done", second, "after")
        together.add_nodes([one])
    together.run(plugin=plugin)
    scans = [name.split(".")[1] for name in begun]
    assert [scan for scan, _ in itertools.groupby(scans)] == list(dict.fromkeys(scans)), begun
    assert len(begun) == 9


@pytest.mark.slow
def test_steps_queue_for_the_one_gpu(tmp_path):
    ends = []
    plugin = choose_plugin(
        Resources(nprocs=4, mem_gb=9.0, device="cuda:0"),
        lambda node, status: ends.append(status) if status != "start" else None,
    )
    workflow = pe.Workflow("gpu", base_dir=tmp_path)
    card = str(tmp_path / "card")
    workflow.add_nodes([pe.Node(Exclusive(card=card), f"step{n}") for n in range(4)])
    workflow.run(plugin=plugin)
    close_plugin(plugin)
    assert ends == ["end"] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plugin: Nonsense\n", "plugin Nonsense is not known; expected one of .*MultiProc"),
        ("plugin: PBSGraph\n", "cannot say how it ended"),
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


UNLIMITED = {"": "max\n", "memory": "9223372036854771712\n"}  # as versions 2 and 1 write it
JOB = "system.slice/slurmstepd.scope/job_7"
STEP = f"{JOB}/step_batch/user/task_0"


@pytest.fixture
def control_groups(tmp_path, monkeypatch):
    """Write a tree of control groups with limits in GB, and let this process be in one."""

    def write(own, limits, tree=""):
        monkeypatch.setattr(plugins, "CGROUPS", tmp_path)
        monkeypatch.setattr(plugins, "OWN_CGROUPS", tmp_path / "own")
        (tmp_path / "own").write_text(own)
        for group, limit in limits.items():
            folder = tmp_path / tree / group
            folder.mkdir(parents=True, exist_ok=True)
            name = "memory.limit_in_bytes" if tree else "memory.max"
            text = f"{int(limit * 1024**3)}\n" if limit else UNLIMITED[tree]
            (folder / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("tree", "own"),
    [
        ("", f"0::/{STEP}\n"),
        ("memory", f"9:cpu,cpuacct:/other\n8:memory:/{STEP}\n0::/init.scope\n"),
        ("memory", f"8:hugetlb,memory:/{STEP}\n"),
    ],
    ids=["version 2", "version 1", "version 1, shared"],
)
@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"": None, JOB: 0.5, STEP: None}, 0.5),
        ({"": None, JOB: 0.5, STEP: 0.25}, 0.25),
        ({"": 0.125, JOB: 0.5}, 0.125),  # the host's names are not there in a container
        ({"": None, f"{JOB}8": 0.25, "other": 0.25}, None),  # others' groups
        ({"": None, STEP: None}, None),
        ({}, None),
    ],
)
def test_smallest_limit_of_the_control_groups_above_counts(
    control_groups, tree, own, limits, expected
):
    machine = get_system_total_memory_gb()
    control_groups(own, limits, tree)
    assert available_memory_gb() == (expected or machine)


@pytest.mark.parametrize("own", ["", "8:cpu:/x\n1:name=systemd:/\n"])
def test_without_a_memory_group_the_machine_counts(control_groups, own):
    control_groups(own, {"": 0.5})
    assert available_memory_gb() == get_system_total_memory_gb()


def test_system_without_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "OWN_CGROUPS", tmp_path / "none")
    assert available_memory_gb() == get_system_total_memory_gb()


@pytest.fixture
def chain(tmp_path):
    """Run steps one after another, and return those that ended in this run."""

    def run(*names, plugin_file=None):
        workflow = pe.Workflow("all", base_dir=tmp_path)
        steps = [
            pe.Node(Exclusive(card=str(tmp_path / "card"), use_gpu=False), name) for name in names
        ]
        for first, second in itertools.pairwise(steps):
            workflow.connect(first, "done", second, "after")
        ended = []
        plugin = choose_plugin(
            Resources(nprocs=2, mem_gb=9.0, plugin_file=plugin_file),
            lambda node, status: ended.append(node.name) if status == "end" else None,
        )
        workflow.run(plugin=plugin)
        return ended

    return run


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_step_begins_once_the_one_before_has_ended(chain, monkeypatch):
    """Not at the next look at all of them; nor does one wait whose results are there."""
    monkeypatch.setattr(plugins, "LOOK_S", 600.0)
    assert chain("one", "two") == ["one", "two"]
    assert chain("one", "two", "three") == ["one", "two", "three"]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_nipype_looks_as_it_does_where_the_steps_at_work_are_limited(chain, monkeypatch, tmp_path):
    """It does not ask for more then, and so nothing would wait between its looks."""
    monkeypatch.setattr(plugins, "LEAST_LOOK_S", "not read")
    path = tmp_path / "plugin.yml"
    path.write_text("plugin: MultiProc\nplugin_args: {n_procs: 2, max_jobs: 1}\n")
    assert chain("one", "two", plugin_file=path) == ["one", "two"]
