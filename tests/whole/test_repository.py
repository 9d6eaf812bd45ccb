"""What the repository says about itself holds: versions, commands, options, links."""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import bagau_bids
from bagau_bids.cli.parser import build_parser, parse


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def console_commands(text):
    """Commands of the console blocks, as lists of words; continued lines joined."""
    blocks = "\n".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL))
    lines = blocks.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def app_options():
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", build_parser().format_help()))


def section(text, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]


def test_citation_is_of_this_version_and_names_the_paper(repository):
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == bagau_bids.__version__
    assert citation["license"] == "Apache-2.0"
    for key in ("cff-version", "message", "title", "authors"):
        assert citation[key]
    (paper,) = citation["references"]
    assert paper["authors"][0]["family-names"] == "Zhang"
    assert "Brain Atlas Guided Attention U-Net" in paper["title"]


def test_change_log_says_first_whether_results_change(repository):
    text = (repository / "CHANGES.md").read_text(encoding="utf-8")
    releases = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert releases[0].startswith(bagau_bids.__version__)
    for release in releases:
        title, body = release.split("\n", 1)
        assert body.strip().startswith("Results:"), title


def test_licence_is_apache(repository):
    text = (repository / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_readme_options_exist(readme):
    known = app_options()
    named = set(re.findall(r"`(--?[a-z][\w-]*)", section(readme, "Options")))
    assert len(named) > 20
    assert named <= known
    used = {
        word.split("=")[0]
        for words in console_commands(readme)
        if words[0] == "bagau-bids"
        for word in words
        if word.startswith("-")
    }
    assert used <= known


def test_readme_make_targets_exist(repository, readme):
    targets = [words[1] for words in console_commands(readme) if words[0] == "make"]
    assert targets == ["install"]
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_makefile_uses_only_options_that_exist(repository):
    makefile = (repository / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"\$\(BIN\)/bagau segment (.*)", makefile)
    options = set(re.findall(r"(?<!\S)--?[a-z][\w-]*", command))
    assert {"--template", "--offline", "--mask"} <= options <= app_options() | {"--mask"}


def test_readme_links_lead_somewhere(repository, readme):
    titles = re.findall(r"^#+ (.*)$", readme, re.MULTILINE)
    anchors = {"#" + title.lower().replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        if target.startswith("#"):
            assert target in anchors
        elif "://" not in target:
            assert (repository / target).is_file(), target


def test_readme_exit_codes_are_those_of_the_package(readme):
    from bagau_bids import errors

    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    stated = re.findall(r"^\| (\d+) \|", section(readme, "Exit codes"), re.MULTILINE)
    assert {int(code) for code in stated} == codes


def test_continuous_integration_runs_the_test_command(repository):
    script = repository / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = script.read_text(encoding="utf-8").splitlines()
    assert "make test" in commands  # alone on its line: its failure ends the script
    assert any("make test-images || status=$?" in line for line in commands)
    subprocess.run(["bash", "-n", script], check=True)
    workflow = yaml.safe_load(
        (repository / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    )
    steps = workflow["jobs"]["test"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]


@pytest.fixture
def machine(tmp_path):
    """Folder of the only commands a script finds: sudo does as told, apt-get brings some."""
    for name in ("bash", "env", "tail", "mktemp", "rm", "touch", "chmod"):
        (tmp_path / name).symlink_to(shutil.which(name))
    for name, body in {
        "sudo": 'shift; exec "$@"',
        "apt-get": f'[[ "$*" == *install* ]] || exit 0; cd {tmp_path}; name=${{@: -1}}; '
        "case $name in slurm-client) name=sbatch ;; munge) name=munged ;; esac; "
        'touch "$name" && chmod +x "$name"',
    }.items():
        command = tmp_path / name
        command.write_text(f"#!{tmp_path}/bash\n{body}\n", encoding="utf-8")
        command.chmod(0o755)
    return tmp_path


def install_packages(repository, machine):
    script = repository / "tools" / "ci_packages.sh"
    environment = {"PATH": str(machine), "CI": "true", "TMPDIR": str(machine)}
    return subprocess.run(
        [script], env=environment, check=True, capture_output=True, text=True
    ).stderr


def test_packages_that_tests_need_are_installed_where_one_may(repository, machine):
    assert install_packages(repository, machine) == ""
    assert (machine / "chromium").is_file()


def test_packages_that_cannot_be_had_are_named_and_stop_nothing(repository, machine):
    (machine / "apt-get").unlink()
    said = install_packages(repository, machine)
    assert "chromium is missing, the tests that need it are skipped" in said


def test_pinned_torch_is_one_the_package_accepts(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    lowest = next(
        requirement.removeprefix("torch>=")
        for requirement in project["project"]["dependencies"]
        if requirement.startswith("torch>=")
    )
    constraints = (repository / "constraints.txt").read_text(encoding="utf-8")
    pinned = re.search(r"^torch==([\d.]+)$", constraints, re.MULTILINE)[1]
    assert [int(part) for part in pinned.split(".")] >= [int(part) for part in lowest.split(".")]


def test_babs_configuration_is_one_that_the_app_takes(repository, tmp_path):
    """The arguments that BABS makes of docs/babs.yaml, for a participant and for a session."""
    config = yaml.safe_load((repository / "docs" / "babs.yaml").read_text(encoding="utf-8"))
    words = [str(tmp_path), str(tmp_path / "out"), "participant"]
    for key, value in config["bids_app_args"].items():
        value = {"$BABS_TMPDIR": "/scratch/work"}.get(value, value)
        if not key.startswith("$"):
            words += [key, *([value] if value else [])]
    subject = config["bids_app_args"]["$SUBJECT_SELECTION_FLAG"]
    args = parse([*words, "--session-label", "ses-1", subject, "sub-01"])
    assert args.selection.participant_labels == ("01",)
    assert args.selection.session_labels == ("1",)
    assert args.execution.work_dir == Path("/scratch/work")
    assert (args.processing.offline, args.resources.mem_gb) == (True, 3.6)
    (version,) = config["zip_foldernames"].values()
    assert version == bagau_bids.__version__.replace(".", "-")
    for section in ("singularity_args", "cluster_resources", "script_preamble", "input_datasets"):
        assert config[section]
