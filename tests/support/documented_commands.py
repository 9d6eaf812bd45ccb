"""The commands that pages show, as bash understands them: each with its words and its folder."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^```(?:console|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_ROOT = re.compile(r"(?<![\w./$~-])/(?=[a-z])")  # start of an absolute path
_TEXT_TOOLS = ("awk", "cat", "id", "ls", "sed")  # do what they always do
_END = "\x1e"

# Bash calls this for every program that is not on PATH, which holds the text tools alone.
_RECORDER = """\
set -euo pipefail
command_not_found_handle() { printf '%s\\0' "$PWD" "$@" $'\\x1e' >> "$RECORD"; }
"""


@dataclass(frozen=True)
class Command:
    """One command of a page: its words, and the folder that it is given in."""

    words: tuple[str, ...]
    folder: Path

    def __str__(self):
        return " ".join(self.words)


def blocks(text):
    """The console and bash blocks of a page, whatever is in them."""
    return BLOCK.findall(text)


def commands_of(block, root):
    """Let bash carry a block out, below `root` instead of ``/``, with every program recorded.

    Variables, loops, substitutions, comments and redirections are those of bash; what programs
    would print is empty.
    """
    tools, record = root / ".tools", root / ".record"
    tools.mkdir(exist_ok=True)
    for name in _TEXT_TOOLS:
        if not (tools / name).exists():
            (tools / name).symlink_to(shutil.which(name))
    record.write_bytes(b"")
    script = _RECORDER + _ROOT.sub(f"{root}/", block.replace(".venv/bin/", ""))
    environment = {"PATH": str(tools), "RECORD": str(record), "HOME": str(root)}
    done = subprocess.run(
        [shutil.which("bash"), "-c", script],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    found = []
    for entry in os.fsdecode(record.read_bytes()).split(f"{_END}\0")[:-1]:
        folder, *words = entry.rstrip("\0").split("\0")
        found.append(Command(tuple(words), Path(folder)))
    return found
