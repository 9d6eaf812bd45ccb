"""Building and running images with buildah and podman, for the tests of the container recipes."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BASE = "docker.io/library/python:3.11-slim-bookworm"
CHROOT_BUILD = ("--isolation", "chroot", "--network", "host")


@dataclass(frozen=True)
class Machine:
    """How this machine runs container tools, and what its pip needs inside of builds."""

    prefix: tuple[str, ...]
    mounts: tuple[str, ...]
    variant: str
    torch_index: str

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [*self.prefix, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if check and done.returncode:
            pytest.fail(
                f"{' '.join(map(str, command))} ended with {done.returncode}:\n"
                f"{done.stdout[-4000:]}",
                pytrace=False,
            )
        return done

    def output(self, *command: str | Path) -> str:
        return self.run(*command).stdout.strip()


def find_machine(repository: Path, scratch: Path) -> Machine:
    """Return how images are built here, with the base image in place, or skip with the reason.

    ``BAGAU_CONTAINER_TOOLS`` names a folder with scripts that make a stand-in for the base image
    where none can be pulled; ``TORCH_INDEX`` is the address of the CPU builds of torch, which
    may also lie in the folder of ``PIP_FIND_LINKS``; ``VARIANT=cuda`` builds the large image.
    """
    for command in ("podman", "buildah", "git"):
        if not shutil.which(command):
            pytest.skip(f"{command} is not installed")
    variant, torch_index = os.environ.get("VARIANT", "cpu"), os.environ.get("TORCH_INDEX", "")
    wheels = Path(os.environ.get("PIP_FIND_LINKS") or "/nonexistent")
    if variant == "cpu" and not torch_index and not any(wheels.glob("torch-*+cpu-*.whl")):
        pytest.skip("TORCH_INDEX does not say where the CPU builds of torch are")
    mounts = []
    if wheels.is_dir():
        settings = scratch / "pip.conf"
        settings.write_text(f"[global]\nfind-links = {wheels}\n", encoding="utf-8")
        mounts = [f"-v={settings}:/etc/xdg/pip/pip.conf:ro", f"-v={wheels}:{wheels}:ro"]
    tools = Path(os.environ.get("BAGAU_CONTAINER_TOOLS", repository.parent / "shared" / "tools"))
    stand_ins = tools / "container_base.sh"
    prefix = ("bash", "-c", '. "$0" && exec "$@"', str(tools / "container_env.sh"))
    machine = Machine(prefix if stand_ins.is_file() else (), tuple(mounts), variant, torch_index)
    how = ("bash", stand_ins) if stand_ins.is_file() else ("podman", "pull", "--quiet", BASE)
    done = machine.run(*how, check=False)
    if done.returncode:
        reason = (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        pytest.skip(f"there is no base image {BASE}: {reason}")
    return machine


def copy_context(repository: Path, context: Path, store: Path | None) -> None:
    """Copy the checkout's files as they are now, and a TemplateFlow store beside them."""
    listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listing, cwd=repository, check=True, capture_output=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (repository / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, context / name)
    if store:
        shutil.copytree(store, context / "templateflow")


@contextmanager
def built(machine: Machine, name: str, build: Callable[[], None]) -> Iterator[str]:
    """Build an image and remove it at the end.

    With ``BAGAU_KEEP_IMAGES`` set it stays, and the next time it is taken as it is.
    """
    keep = bool(os.environ.get("BAGAU_KEEP_IMAGES"))
    there = not machine.run("podman", "image", "exists", name, check=False).returncode
    if not (keep and there):
        build()
    yield name
    if not keep:
        machine.run("podman", "rmi", "--force", name)


def build_dockerfile(machine: Machine, context: Path, name: str) -> None:
    """Build the Dockerfile; a store in the context is used."""
    arguments = {
        "VARIANT": machine.variant,
        "TORCH_INDEX": machine.torch_index,
        "TEMPLATEFLOW_STORE": "templateflow" if (context / "templateflow").is_dir() else "",
        "TAG": name,
        "REVISION": "abc123",
    }
    machine.run(
        *("buildah", "bud", *CHROOT_BUILD, "--pull-never", "--layers=false", *machine.mounts),
        *(f"--build-arg={key}={value}" for key, value in arguments.items()),
        *("-t", name, context),
    )


def definition_sections(text: str, values: dict[str, str] | None = None) -> dict[str, list[str]]:
    """Return a Singularity definition's sections as lists of lines, arguments put in.

    The header is the section of the empty name.
    """
    raw = _split_sections(text)
    arguments = dict(line.split("=", 1) for line in raw.get("arguments", []))
    arguments |= values or {}
    return _split_sections(re.sub(r"{{ *(\w+) *}}", lambda found: arguments[found[1]], text))


def _split_sections(text: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {"": []}
    lines = sections[""]
    for line in text.splitlines():
        if line.startswith("%"):
            lines = sections.setdefault(line[1:].strip(), [])
        elif line.strip():
            lines.append(line.strip())
    return sections


# What Apptainer does before the %runscript and the %test.
LAUNCHER = """#!/bin/sh
. /.singularity.d/environment
exec /bin/sh /.singularity.d/{section} "$@"
"""


def build_definition(
    machine: Machine, context: Path, sections: dict[str, Sequence[str]], name: str
) -> None:
    """Carry a definition's sections out with buildah, the way Apptainer does it.

    The image starts with the %runscript; ``/.singularity.d/start-test`` is its %test. While it is
    built, the context is bound to ``/context``.
    """
    header = dict(line.split(": ", 1) for line in sections[""])
    container = machine.output("buildah", "from", "--pull-never", header["From"])
    for line in sections.get("files", []):
        source, target = line.split()
        machine.run("buildah", "copy", container, context / source, target)
    scripts = context.with_name(f"{context.name}-{name.rpartition(':')[2]}")
    scripts.mkdir()
    for section in ("post", "environment", "runscript", "test"):
        text = "".join(f"{line}\n" for line in sections.get(section, []))
        (scripts / section).write_text(text, encoding="utf-8")
    for section, launcher in (("runscript", "start"), ("test", "start-test")):
        (scripts / launcher).write_text(LAUNCHER.format(section=section), encoding="utf-8")
        (scripts / launcher).chmod(0o755)
    machine.run(
        *("buildah", "run", *CHROOT_BUILD, *machine.mounts, f"-v={scripts}:/.post:ro"),
        f"-v={context}:/context:ro",
        *(container, "--", "/bin/sh", "-ex", "/.post/post"),
    )
    machine.run("buildah", "copy", container, scripts, "/.singularity.d")
    labels = (line.split(maxsplit=1) for line in sections["labels"])
    machine.run(
        *("buildah", "config", "--entrypoint", json.dumps(["/.singularity.d/start"])),
        *("--cmd", "", *(f"--label={key}={value}" for key, value in labels), container),
    )
    machine.run("buildah", "commit", "--quiet", "--rm", container, name)
