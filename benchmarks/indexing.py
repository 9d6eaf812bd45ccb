"""Time until the scans of one participant are found in data sets that are generated here.

Every participant has a session with a FLAIR, a T1w and a T2w, files of one byte with their
sidecars; the images are not opened when scans are looked for. Each search runs in a process of
its own; its time is that of `find_scans` without the import of pybids.

    python benchmarks/indexing.py /scratch/indexing --participants 1000 10000
"""

import argparse
import subprocess
import sys
from pathlib import Path

from bagau_bids.files import write_json

SEARCH = """
import sys, time
from pathlib import Path
import bids.layout
from bagau_bids.bids.scans import find_missing, find_scans
from bagau_bids.config import Selection
folder, labels, database = Path(sys.argv[1]), tuple(sys.argv[3:]), sys.argv[2]
selection = Selection(
    participant_labels=labels, database_dir=Path(database) if database else None
)
start = time.perf_counter()
scans = find_scans(folder, selection)
find_missing(folder, selection, scans)
print(f"{len(scans)} found in {time.perf_counter() - start:.1f} s")
"""


def main() -> None:
    """Generate, search, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--participants", type=int, nargs="+", default=[1000, 10000])
    args = parser.parse_args()
    for count in args.participants:
        folder = args.folder / f"n-{count}"
        if not (folder / "dataset_description.json").is_file():
            generate(folder, count)
        database = str(args.folder / f"database-{count}")
        for what, where, labels in (
            ("one participant", "", ["000007"]),
            ("all participants", "", []),
            ("one, with a new database", database, ["000007"]),
            ("one, with that database", database, ["000007"]),
        ):
            print(f"{count} participants, {what}: {search(folder, where, labels)}", flush=True)


def generate(folder: Path, count: int) -> None:
    """Write a data set of so many participants."""
    for number in range(1, count + 1):
        stem = f"sub-{number:06d}_ses-1"
        anat = folder / stem.split("_")[0] / "ses-1" / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        for suffix in ("FLAIR", "T1w", "T2w"):
            (anat / f"{stem}_{suffix}.nii.gz").write_bytes(b"x")
            (anat / f"{stem}_{suffix}.json").write_text("{}")
    description = {"Name": f"{count} participants", "BIDSVersion": "1.10.0"}
    write_json(folder / "dataset_description.json", description)


def search(folder: Path, database: str, labels: list[str]) -> str:
    """Look for scans in a process of its own, and return what it printed."""
    command = [sys.executable, "-c", SEARCH, str(folder), database, *labels]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
