"""The command line: spellings, defaults, what is refused and how, and that help is quick."""

import dataclasses
import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bagau_bids.cli.parser import build_parser, parse
from bagau_bids.config import (
    Config,
    Execution,
    Processing,
    Resources,
    Selection,
    as_plain,
    default_omp_nthreads,
)

HEAVY = ("torch", "itk", "ants", "nipype", "bids", "nibabel", "numpy", "scipy", "pandas", "rich")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Run in an empty folder with a data set beside it."""
    (tmp_path / "bids").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return [str(tmp_path / "bids"), str(tmp_path / "out")]


@pytest.fixture
def config_of(folders):
    def read(*options: str, levels: tuple[str, ...] = ("participant",)) -> Config:
        return parse([*folders, *levels, *options])

    return read


@pytest.fixture
def refusal(config_of, capsys):
    def read(*options: str) -> str:
        with pytest.raises(SystemExit) as stop:
            config_of(*options)
        assert stop.value.code == 2
        return capsys.readouterr().err

    return read


def test_defaults_are_those_of_the_configuration(config_of, tmp_path):
    config = config_of()
    assert config.selection == Selection()
    assert config.processing == Processing()
    assert config.resources == Resources()
    work_dir = tmp_path / "here" / "work"
    assert config.execution == dataclasses.replace(Execution(), work_dir=work_dir)
    assert config.bids_dir == tmp_path / "bids"
    assert config.output_dir == tmp_path / "out"
    assert config.log_dir == tmp_path / "out" / "logs" / config.run_uuid


def test_configuration_is_frozen(config_of):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_of().run_uuid = "x"


def test_run_uuid_is_new_each_time(config_of):
    first, second = config_of().run_uuid, config_of().run_uuid
    assert first != second
    assert re.fullmatch(r"\d{8}-\d{6}_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", first)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("participant",), ("participant",)),
        (("group",), ("group",)),
        (("group", "participant"), ("participant", "group")),
        (("group", "group"), ("group",)),
    ],
)
def test_analysis_levels(config_of, given, expected):
    assert config_of(levels=given).analysis_levels == expected


@pytest.mark.parametrize(
    "option", ["--participant-label", "--participant_label", "--participant-labels"]
)
def test_participant_prefix_is_dropped(config_of, option):
    labels = config_of(option, "sub-01", "02", "sub-01").selection.participant_labels
    assert labels == ("01", "02")


@pytest.mark.parametrize(
    "option", ["--session-label", "--session_label", "--session-id", "--session_id"]
)
def test_session_prefix_is_dropped(config_of, option):
    assert config_of(option, "ses-1", "2").selection.session_labels == ("1", "2")


@pytest.mark.parametrize(
    "option",
    ["--nprocs", "--nthreads", "--n_cpus", "--n-cpus", "-n-cpus", "--ncpus", "--n_procs"],
)
def test_nprocs_spellings(config_of, option):
    resources = config_of(option, "12").resources
    assert (resources.nprocs, resources.omp_nthreads) == (12, None)


def test_nprocs_default_is_the_affinity(config_of):
    assert config_of().resources.nprocs == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("nprocs", "scans", "threads"),
    [(1, 1, 1), (2, 1, 2), (2, 2, 1), (2, 5, 1), (8, 3, 2), (64, 1, 8), (64, 100, 1), (4, 0, 4)],
)
def test_scans_share_the_threads(nprocs, scans, threads):
    assert default_omp_nthreads(nprocs, scans) == threads


def test_more_threads_than_processors_is_a_warning(config_of, capsys):
    assert config_of("--nprocs", "2", "--omp-nthreads", "4").resources.omp_nthreads == 4
    assert "--omp-nthreads 4 is more than --nprocs 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "mem_gb"),
    [
        (("--mem", "16G"), 16),
        (("--mem", "16GB"), 16),
        (("--mem", "1.5t"), 1500),
        (("--mem", "16000M"), 16),
        (("--mem", "16000000KiB"), 16),
        (("--mem-mb", "16000"), 16),
        (("--mem_mb", "16000"), 16),
        (("--mem_mb", "16G"), 16),
        (("--mem-gb", "16"), 16),
        (("--mem_gb", "16"), 16),
    ],
)
def test_memory_units(config_of, options, mem_gb):
    assert config_of(*options).resources.mem_gb == pytest.approx(mem_gb)


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ("--skip-bids-validation", "skip_bids_validation"),
        ("--skip_bids_validation", "skip_bids_validation"),
        ("--skip_bids_validator", "skip_bids_validation"),
    ],
)
def test_validation_spellings(config_of, option, field):
    assert getattr(config_of(option).selection, field)


def test_every_other_option_reaches_the_configuration(config_of, tmp_path):
    filters, plugin, weights = (tmp_path / name for name in ("f.json", "p.yml", "w.safetensors"))
    filters.write_text("{}")
    plugin.write_text("")
    options = f"""
        --bids-filter-file {filters} --bids-database-dir {tmp_path}/db --bids-database-wipe
        -d masks={tmp_path} --weights {weights} {plugin} --tta --model small
        --infarct --known-lesions mine={tmp_path} --ignore-lesion-roi
        --threshold 0.3 --min-lesion-size 5
        --random-seed 7 --registration paper --template ICBM152NLin2009aSym
        --templateflow-home {tmp_path}/tf --offline --skull-strip skip --sloppy
        --output-spaces orig ICBM152NLin2009aSym:res-1 --aggregate-session-reports 2
        --device cuda:1 --batch-size 3 --low-mem --use-plugin {plugin} -w {tmp_path}/w
        --clean-workdir --rm-work-on-success --stop-on-first-crash --strict --dry-run
        --write-graph --resource-monitor --debug pdb -vv
    """
    config = config_of(*options.split())
    assert config.selection == Selection(
        bids_filters=filters, database_dir=tmp_path / "db", database_wipe=True
    )
    assert config.processing == Processing(
        template="ICBM152NLin2009aSym",
        templateflow_home=tmp_path / "tf",
        offline=True,
        registration="paper",
        skull_strip="skip",
        derivatives=(tmp_path,),
        output_spaces=("orig", "ICBM152NLin2009aSym"),
        model="small",
        weights=(weights, plugin),
        tta=True,
        infarct=True,
        known_lesions=(tmp_path,),
        ignore_lesion_roi=True,
        threshold=0.3,
        min_lesion_size_mm3=5.0,
        random_seed=7,
        sloppy=True,
    )
    assert config.resources == dataclasses.replace(
        config.resources, device="cuda:1", batch_size=3, low_mem=True, plugin_file=plugin
    )
    assert config.execution == Execution(
        work_dir=tmp_path / "w",
        clean_workdir=True,
        rm_work_on_success=True,
        stop_on_first_crash=True,
        strict=True,
        resource_monitor=True,
        write_graph=True,
        dry_run=True,
        debug=("pdb",),
        aggregate_session_reports=2,
        verbose=2,
    )


@pytest.mark.parametrize(
    "options",
    [
        "--notrack",
        "--crashfile-format txt",
        "--output-layout bids",
        "--md-only-boilerplate",
        "--nipype-plugin-file {file}",
        "--ants-nthreads 1",
        "--boilerplate-only",
        "--boilerplate",
        "--reports-only",
        "--device cpu",
        "--device cuda",
        "-vvv",
    ],
)
def test_also_accepted(config_of, tmp_path, options):
    (tmp_path / "file").write_text("")
    config_of(*options.format(file=tmp_path / "file").split())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--anat-only", "--anat-only does not apply here: only anatomical FLAIR"),
        ("--anat_only", "does not apply here"),
        ("-m T1w", "only FLAIR images are processed"),
        ("--run-id 1", "select runs with --bids-filter-file"),
        ("--task_id rest", "a FLAIR has no task"),
        ("--level minimal", "does not apply here"),
        ("--ignore fieldmaps", "does not apply here"),
        ("--force bbr", "does not apply here"),
        ("--skull-strip-fixed-seed", "the seed is --random-seed"),
        ("--subject-anatomical-reference unbiased", "each FLAIR is processed on its own"),
        ("--crashfile-format pklz", "invalid choice: 'pklz'"),
        ("--output-layout legacy", "invalid choice: 'legacy'"),
        ("--skull-strip force", "invalid choice: 'force'"),
        ("--partic 01", "unrecognized arguments: --partic 01"),
        ("--participant-label /data", "'/data' is no BIDS label"),
        ("--session-label a_b", "'a_b' is no BIDS label"),
        ("--threshold 0", "'0' was given; expected a probability between 0 and 1"),
        ("--threshold 1", "'1' was given; expected a probability between 0 and 1"),
        ("--threshold half", "'half' was given; expected a probability"),
        ("--threshold nan", "'nan' was given; expected a probability"),
        ("--min-lesion-size -1", "expected a volume in mm3"),
        ("--min-lesion-size inf", "expected a volume in mm3"),
        ("--batch-size 0", "'0' was given; expected a whole number of at least 1"),
        ("--nprocs 1.5", "'1.5' was given; expected a whole number of at least 1"),
        ("--random-seed -1", "expected a whole number of at least 0"),
        ("--mem 16", "expected a number with its unit K, M, G or T"),
        ("--mem 16X", "'16X' was given; expected a number with its unit"),
        ("--mem-gb 0", "'0' was given; expected more than nothing"),
        ("--device gpu", "'gpu' was given; expected auto, cpu, cuda or cuda:N"),
        ("--device cuda:x", "expected auto, cpu, cuda or cuda:N"),
        ("--template colin", "invalid choice: 'colin'"),
        ("--output-spaces MNI152NLin6Asym", "expected orig or a template"),
        ("--output-spaces ICBM152NLin2009aSym", "registered to MNI152NLin2009cSym only"),
        ("--derivatives nowhere", "nowhere: no such folder"),
        ("--derivatives masks=nowhere", "nowhere: no such folder"),
        ("--bids-filter-file nowhere.json", "nowhere.json: no such file"),
        ("--use-plugin nowhere.yml", "nowhere.yml: no such file"),
        ("--bids-database-wipe", "--bids-database-wipe needs --bids-database-dir"),
        ("--reports-only --boilerplate-only", "exclude each other"),
        ("--debug gdb", "invalid choice: 'gdb'"),
    ],
)
def test_refused(refusal, options, expected):
    text = refusal(*options.split())
    assert expected in text
    assert text.count("\n") == 2, "one line of usage, one message"


def test_empty_path_is_refused(refusal):
    assert "an empty path was given" in refusal("--work-dir", "")


def test_missing_arguments(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--offline"])
    assert stop.value.code == 2
    assert "required: bids_dir, output_dir" in capsys.readouterr().err


def test_unknown_level(folders, capsys):
    with pytest.raises(SystemExit):
        parse([*folders, "session"])
    assert "invalid choice: 'session'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("{root}/none {root}/out participant", "BIDS_DIR {root}/none does not exist"),
        ("{root}/file {root}/out participant", "BIDS_DIR {root}/file is a file"),
        ("{root}/bids {root}/bids participant", "OUTPUT_DIR is BIDS_DIR"),
        ("{root}/bids {root}/here/../bids participant", "OUTPUT_DIR is BIDS_DIR"),
        ("{root}/bids {root}/link participant", "OUTPUT_DIR is BIDS_DIR"),
        ("{root}/bids {root}/file participant", "OUTPUT_DIR {root}/file is a file"),
        ("{root}/bids {root}/out participant -w {root}/bids/work", "lies inside BIDS_DIR"),
        ("{root}/bids {root}/out participant -w {root}/bids", "lies inside BIDS_DIR"),
        ("{root}/bids {root}/out participant -w {root}/out", "the work folder is OUTPUT_DIR"),
    ],
)
def test_folders_that_cannot_be(folders, tmp_path, capsys, arguments, expected):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("bids")
    with pytest.raises(SystemExit) as stop:
        parse(arguments.format(root=tmp_path).split())
    assert stop.value.code == 2
    assert expected.format(root=tmp_path) in capsys.readouterr().err


def test_work_folder_default_inside_the_data_set_is_refused(folders, monkeypatch, capsys):
    monkeypatch.chdir(folders[0])
    with pytest.raises(SystemExit):
        parse([*folders, "participant"])
    assert "name another with -w" in capsys.readouterr().err


def test_output_in_derivatives_of_the_data_set_is_fine(folders):
    output = f"{folders[0]}/derivatives/bagau-bids"
    assert parse([folders[0], output, "participant"]).output_dir == Path(output)


def test_configuration_as_toml_reads_back(config_of):
    import tomli_w

    plain = as_plain(config_of("--participant-label", "01", "--mem", "4G"))
    assert tomllib.loads(tomli_w.dumps(plain)) == plain
    assert plain["selection"]["participant_labels"] == ["01"]
    assert plain["resources"]["mem_gb"] == 4.0
    assert "plugin_file" not in plain["resources"]


def test_help_shows_each_option_once():
    text = build_parser().format_help()
    assert "  --participant-label, --participant-labels LABEL [LABEL ...]\n" in text
    assert "  -v, --verbose " in text
    assert text.count("--participant_label") == 1, "said once, in the last line"
    assert "--anat-only" not in text


def test_every_option_has_help():
    for action in build_parser()._actions:
        assert action.help, action.option_strings


@pytest.mark.parametrize("program", ["app", "toolbox"])
def test_help_is_quick_and_imports_nothing_heavy(program):
    code = (
        "import sys\n"
        f"from bagau_bids.cli.{program} import main\n"
        "code = main(['--help'])\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0
    assert ended.stderr.strip() == "[]"
    assert "exit codes" in ended.stdout
    # Processor time: the clock on the wall also counts what else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_version(capsys):
    from bagau_bids import __version__

    with pytest.raises(SystemExit) as stop:
        parse(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"bagau-bids {__version__}\n"
