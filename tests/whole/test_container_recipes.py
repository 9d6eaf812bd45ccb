"""What the container recipes say, tested without building anything; test_container.py builds."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from container_builds import definition_sections

import bagau_bids
from bagau_bids.cli.parser import build_parser

LABEL = "org.opencontainers.image"


@pytest.fixture(scope="module")
def dockerfile(repository):
    return (repository / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def definition(repository, name="Singularity.def"):
    return definition_sections((repository / name).read_text(encoding="utf-8"))


@pytest.fixture(params=["Singularity.def", "Singularity.docker.def"])
def any_definition(repository, request):
    return definition(repository, request.param)


def copied_files(dockerfile):
    """Sources of the COPY lines that take files of the context, the store apart."""
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE)
    return {word for line in lines for word in line.split() if not word.startswith("$")}


def settings(dockerfile):
    (block,) = re.findall(r"^ENV (.*)$", dockerfile, re.MULTILINE)
    return dict(word.split("=", 1) for word in block.split())


def exports(section):
    lines = (line.removeprefix("export ") for line in section if line.startswith("export "))
    return dict(line.split("=", 1) for line in lines)


def test_the_context_holds_what_is_copied_and_nothing_else(repository, dockerfile):
    lines = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "*"  # tests, data, environments, demo, .git: all stay outside
    assert lines[-1] == "**/__pycache__"
    let_in = {line.removeprefix("!") for line in lines[1:-1]}
    assert let_in == copied_files(dockerfile) | {"templateflow*"}
    for name in let_in - {"templateflow*"}:
        assert (repository / name).exists()


def test_both_recipes_take_the_same_files(repository, dockerfile):
    files = [line.split() for line in definition(repository)["files"]]
    assert {source for source, _ in files} == copied_files(dockerfile)
    for source, target in files:
        assert target == f"/src/{Path(source).name}"


def test_both_recipes_start_from_the_same_python(repository, dockerfile):
    (base,) = re.findall(r"^ARG BASE=(\S+)", dockerfile, re.MULTILINE)
    assert definition(repository)[""] == ["Bootstrap: docker", f"From: {base}"]
    python = re.match(r"python:(\d+\.\d+)-", base)[1]
    script = (repository / "tools" / "install_in_image.sh").read_text(encoding="utf-8")
    assert f"/lib/python{python}/site-packages" in script


def test_labels_are_those_of_this_version(repository, dockerfile):
    labels = dict(re.findall(rf'{re.escape(LABEL)}\.([\w.]+)="([^"]*)"', dockerfile))
    assert labels["version"] == bagau_bids.__version__
    lines = (line.split(maxsplit=1) for line in definition(repository)["labels"])
    same = {key.removeprefix(f"{LABEL}."): value for key, value in lines}
    assert same == {key: labels[key] for key in same}
    assert {"title", "description", "version", "authors", "licenses"} <= same.keys()


def test_the_app_is_what_a_container_runs(dockerfile, any_definition):
    assert dockerfile.rstrip().endswith('ENTRYPOINT ["bagau-bids"]')
    assert any_definition["runscript"] == ['exec bagau-bids "$@"']
    assert any_definition["test"] == ["bagau-check"]
    assert any_definition["help"]


def test_the_image_is_not_for_root(dockerfile):
    last_stage = dockerfile[dockerfile.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.*)$", last_stage, re.MULTILINE) == ["1000"]


def test_both_recipes_set_the_same_environment(repository, dockerfile):
    docker, singularity = settings(dockerfile), exports(definition(repository)["environment"])
    assert docker.keys() - {"BAGAU_DOCKER_TAG"} == singularity.keys() - {"BAGAU_SINGULARITY_URL"}
    assert docker["TEMPLATEFLOW_HOME"] == "/opt/templateflow"


def test_definitions_keep_the_template_store_they_are_given(repository):
    environment = exports(definition(repository)["environment"])
    assert environment["TEMPLATEFLOW_HOME"] == '"${TEMPLATEFLOW_HOME:-/opt/templateflow}"'
    from_docker = exports(definition(repository, "Singularity.docker.def")["environment"])
    assert "TEMPLATEFLOW_HOME" not in from_docker  # Apptainer lets ENV of an image give way


def test_page_names_build_arguments_that_exist(repository, dockerfile):
    page = (repository / "docs" / "containers.md").read_text(encoding="utf-8")
    known = {
        "docker build": set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE)),
        "Singularity.def": set(arguments(repository, "Singularity.def")),
        "Singularity.docker.def": set(arguments(repository, "Singularity.docker.def")),
    }
    named = 0
    for line in page.replace("\\\n", " ").splitlines():
        used = set(re.findall(r"--build-arg (\w+)=", line))
        for tool, names in known.items():
            if re.search(rf"(?<!\S){re.escape(tool)}(?!\S)", line):
                assert used <= names, line
                named += len(used)
    assert named > 3


def test_no_argument_of_a_definition_is_empty(any_definition):
    for line in any_definition["arguments"]:  # which Apptainer before 1.2.4 refuses
        assert re.fullmatch(r"[A-Z_]+=\S+", line)


@pytest.mark.parametrize(
    ("index", "asked"),
    [("none", ""), ("", ""), ("https://example.org/cpu", "--index-url https://example.org/cpu ")],
)
def test_torch_comes_from_the_index_that_is_given(repository, tmp_path, index, asked):
    shutil.copy(repository / "tools" / "install_in_image.sh", tmp_path)
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/calls"\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(  # no build of torch is a "neither" one, so nothing more is done
        ["sh", tmp_path / "install_in_image.sh", "dependencies", "neither", index],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    _, install = (tmp_path / "calls").read_text().splitlines()
    assert install.endswith(f"-c constraints.txt {asked}torch")


def arguments(repository, name):
    return [line.split("=")[0] for line in definition(repository, name)["arguments"]]


def test_help_of_the_definitions_uses_options_that_exist(any_definition):
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", build_parser().format_help()))
    text = " ".join(any_definition["help"])
    (after_image,) = re.findall(r"bagau-bids\.sif (/data .*?)With", text)
    assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", after_image)) <= known


@pytest.fixture
def pruning(repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "tools")
    import prune_itk

    yield prune_itk
    sys.modules.pop("prune_itk")


@pytest.fixture
def small_itk(tmp_path):
    """An itk package of four modules: Top needs Middle, which needs Base; Other needs Base."""
    folder = tmp_path / "itk"
    (folder / "Configuration").mkdir(parents=True)
    for module, needs in {
        "Base": (),
        "Middle": ("Base",),
        "Top": ("Middle",),
        "Other": ("Base",),
    }.items():
        (folder / "Configuration" / f"{module}Config.py").write_text(f"depends = {needs}\n")
        (folder / f"_{module}Python.abi3.so").touch()
        imports = "".join(f"from . import _{name}Python\n" for name in (*needs, module))
        (folder / f"itk{module}FilterPython.py").write_text(imports)
    return folder


def test_itk_modules_that_nothing_needs_are_found(pruning, small_itk):
    assert pruning.needed_modules(small_itk, ["Top"]) == {"Top", "Middle", "Base"}
    assert {path.name for path in pruning.unneeded_files(small_itk, ["Top"])} == {
        "_OtherPython.abi3.so",
        "itkOtherFilterPython.py",
    }


def test_another_kind_of_itk_is_refused(pruning, small_itk):
    (small_itk / "Configuration" / "MiddleConfig.py").write_text("needs = ()\n")
    with pytest.raises(SystemExit, match="MiddleConfig.py: found no list `depends`"):
        pruning.needed_modules(small_itk, ["Top"])


def test_what_is_left_of_itk_never_asks_for_what_is_gone(pruning):
    import itk

    folder = Path(itk.__file__).parent
    unneeded = set(pruning.unneeded_files(folder))
    gone = {path.name.split(".")[0] for path in unneeded}
    assert "_ITKLevelSetsPython" in gone
    for path in set(folder.glob("*.py")) - unneeded:
        text = path.read_text(encoding="utf-8")
        assert not gone.intersection(re.findall(r"(?:import|from) itk\.(\w+)", text)), path
        assert not gone.intersection(re.findall(r"from \. import (\w+)", text)), path


def test_what_the_package_imports_from_itk_is_left(repository, pruning):
    import itk

    folder = Path(itk.__file__).parent
    sources = (path.read_text("utf-8") for path in (repository / "bagau_bids").rglob("*.py"))
    imported = {name for text in sources for name in re.findall(r"from itk\.(\w+) import", text)}
    assert len(imported) > 5
    gone = {path.stem for path in pruning.unneeded_files(folder)}
    assert not gone & imported
