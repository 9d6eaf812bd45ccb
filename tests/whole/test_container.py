"""The images of the Dockerfile and of both Singularity definitions, built and run for real.

No SIF is built: the sections of the definitions are carried out as Apptainer would. What a cluster
does to a container is done here with podman: a read-only root and home, no network, a user that
the image does not know, data read-only, limited memory, a template store from outside.
"""

import json
import os
from pathlib import Path

import container_builds as builds
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import bagau_bids
from bagau_bids.datasets.phantom import compare_volumes, make_phantom_dataset

pytestmark = [pytest.mark.container, pytest.mark.timeout(3600)]

NAME = "localhost/bagau-bids-test"
DOCKER, SCRATCH, FROM_DOCKER = f"{NAME}:docker", f"{NAME}:scratch", f"{NAME}:from-docker"
SIZE_LIMIT_GB = 3.5
LABEL = "org.opencontainers.image"


@pytest.fixture(scope="module")
def store(repository):
    """A TemplateFlow store outside of the images, or None where there is none."""
    default = repository.parent / "shared" / "templateflow"
    folder = Path(os.environ.get("BAGAU_TEST_TEMPLATEFLOW", default))
    return folder if folder.is_dir() else None


@pytest.fixture(scope="module")
def machine(repository, tmp_path_factory):
    return builds.find_machine(repository, tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def context(machine, repository, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("build") / "context"
    builds.copy_context(repository, folder, store)
    return folder


@pytest.fixture(scope="module")
def docker_image(machine, context):
    with builds.built(
        machine, DOCKER, lambda: builds.build_dockerfile(machine, context, DOCKER)
    ) as name:
        yield name


@pytest.fixture(scope="module")
def scratch_image(machine, context, store):
    text = (context / "Singularity.def").read_text(encoding="utf-8")
    values = {
        "BASE": builds.BASE,
        "VARIANT": machine.variant,
        "TORCH_INDEX": machine.torch_index,
        "TEMPLATEFLOW_STORE": "/context/templateflow" if store else "",
    }
    sections = builds.definition_sections(text, values)
    with builds.built(
        machine, SCRATCH, lambda: builds.build_definition(machine, context, sections, SCRATCH)
    ) as name:
        yield name


@pytest.fixture(scope="module")
def from_docker_image(machine, context, docker_image):
    text = (context / "Singularity.docker.def").read_text(encoding="utf-8")
    sections = builds.definition_sections(text, {"IMAGE": docker_image})
    with builds.built(
        machine,
        FROM_DOCKER,
        lambda: builds.build_definition(machine, context, sections, FROM_DOCKER),
    ) as name:
        yield name


@pytest.fixture(params=["docker_image", "scratch_image", "from_docker_image"])
def image(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["scratch_image", "from_docker_image"])
def definition_image(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "bids"
    make_phantom_dataset(folder, subjects=1, seed=1)
    return folder


@pytest.fixture
def folders(tmp_path):
    """Folders that any user may write into: results, work, and an empty home that none may."""
    for name in ("out", "work", "home"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    return tmp_path


@pytest.fixture(scope="module")
def memory_limit(machine):
    """Options that limit the memory, none where this machine cannot."""
    limit = ("--memory", "3g")
    probe = machine.run("podman", "run", "--rm", *limit, builds.BASE, "true", check=False)
    return () if probe.returncode else limit


def inside(machine, image, *command):
    """Output of a command in a container that is not the image's own."""
    start = ("podman", "run", "--rm", "--network", "none", "--entrypoint")
    return machine.output(*start, command[0], image, *command[1:])


def locked(user, folders):
    """Options of a run that may write to /out, /work and /tmp, and nowhere else."""
    return (
        *("--rm", "--network", "none", "--user", user),
        *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp"),
        *("-e", "HOME=/home/someone", "-v", f"{folders}/home:/home/someone:ro"),
        *("-v", f"{folders}/out:/out", "-v", f"{folders}/work:/work"),
    )


def test_the_image_says_which_version_it_has(machine, docker_image):
    assert bagau_bids.__version__ in machine.output(
        "podman", "run", "--rm", docker_image, "--version"
    )
    labels = json.loads(
        machine.output("podman", "image", "inspect", "-f", "{{json .Config.Labels}}", docker_image)
    )
    assert labels[f"{LABEL}.version"] == bagau_bids.__version__
    assert labels[f"{LABEL}.revision"] == "abc123"
    assert labels[f"{LABEL}.base.name"]


def test_every_module_can_still_be_imported(machine, docker_image):
    code = (
        "import importlib, pkgutil, bagau_bids\n"
        "names = [m.name for m in pkgutil.walk_packages(bagau_bids.__path__, 'bagau_bids.')]\n"
        "print(len([importlib.import_module(name) for name in names]))"
    )
    package = Path(bagau_bids.__file__).parent
    modules = [path for path in package.rglob("*.py") if path != package / "__init__.py"]
    assert int(inside(machine, docker_image, "python", "-c", code)) == len(modules)


def test_weights_and_the_template_are_inside(machine, image):
    models = inside(machine, image, "/opt/venv/bin/bagau", "models")
    assert "small" in models
    dest = ("--dest", "/opt/templateflow")
    assert "complete" in inside(machine, image, "/opt/venv/bin/bagau", "fetch", *dest, "--offline")


def test_nothing_of_the_build_is_left(machine, image):
    places = ("/src", "/package", "/root/.cache", "/var/lib/apt/lists/*", "/opt/venv/bin/pip*")
    found = inside(machine, image, "sh", "-c", f"ls -d {' '.join(places)} 2>/dev/null; true")
    assert found in ("", "/src")  # an empty folder where WORKDIR made it
    unwanted = "( -name tests -o -name *.a -o -name *.whl -o -path */torch/include )"
    assert inside(machine, image, "find", "/opt/venv", *unwanted.split()) == ""


def test_the_cpu_image_is_small(machine, docker_image):
    if machine.variant != "cpu":
        pytest.skip("VARIANT is not cpu")
    size = machine.output("podman", "image", "inspect", "-f", "{{.Size}}", docker_image)
    assert int(size) / 1e9 < SIZE_LIMIT_GB


def test_phantom_from_data_set_to_group_table(
    machine, docker_image, phantom, folders, memory_limit
):
    run = ("podman", "run", *locked("1000:1000", folders), *memory_limit)
    machine.run(
        *(
            *run,
            "-v",
            f"{phantom}:/data:ro",
            docker_image,
            "/data",
            "/out",
            "participant",
            "group",
        ),
        *("--offline", "--nprocs", "1", "-w", "/work"),
    )
    out = folders / "out"
    mask = nib.load(out / "sub-01" / "anat" / "sub-01_space-orig_label-WMH_mask.nii.gz")
    source = nib.load(phantom / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz")
    assert mask.shape == source.shape
    np.testing.assert_array_equal(mask.affine, source.affine)
    (row,) = compare_volumes(phantom, out).to_dict("records")
    assert row["dice"] > 0.5
    assert len(pd.read_csv(out / "group_FLAIR.tsv", sep="\t")) == 1
    for page in ("sub-01.html", "group_FLAIR.html"):
        assert (out / page).stat().st_size > 10_000
    description = json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))
    assert description["GeneratedBy"][0]["Container"] == {"Type": "docker", "Tag": DOCKER}


def test_definition_runs_for_an_unknown_user_with_a_store_from_outside(
    machine, definition_image, phantom, store, folders, memory_limit
):
    if store is None:
        pytest.skip("there is no TemplateFlow store outside; set BAGAU_TEST_TEMPLATEFLOW")
    run = ("podman", "run", *locked("54321:54321", folders), *memory_limit)
    outside = ("-v", f"{store}:/store:ro", "-e", "TEMPLATEFLOW_HOME=/store")
    machine.run(
        *(*run, *outside, "-e", "APPTAINER_CONTAINER=/images/bagau-bids.sif"),
        *("-v", f"{phantom}:/data:ro", definition_image, "/data", "/out", "participant", "group"),
        *("--sloppy", "--offline", "--nprocs", "1", "-w", "/work"),
    )
    out = folders / "out"
    (row,) = compare_volumes(phantom, out).to_dict("records")
    assert row["measured_ml"] > 0
    assert len(pd.read_csv(out / "group_FLAIR.tsv", sep="\t")) == 1
    description = json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))
    assert description["GeneratedBy"][0]["Container"] == {
        "Type": "singularity",
        "URI": "/images/bagau-bids.sif",
    }


def test_definition_tests_itself(machine, scratch_image, folders):
    run = ("podman", "run", *locked("1000:1000", folders))
    machine.run(*run, "--entrypoint", "/.singularity.d/start-test", scratch_image)


def test_a_store_from_outside_takes_the_place_of_the_one_inside(machine, image, phantom, folders):
    run = ("podman", "run", *locked("54321:54321", folders))
    empty = ("-e", "TEMPLATEFLOW_HOME=/home/someone", "-v", f"{phantom}:/data:ro")
    done = machine.run(
        *(*run, *empty, image, "/data", "/out", "participant", "--offline", "-w", "/work"),
        check=False,
    )
    assert done.returncode == 127
    assert "/home/someone/tpl-MNI152NLin2009cSym" in done.stdout.replace("\n", "")
