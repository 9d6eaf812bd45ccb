"""What one scan costs: core seconds, memory, files and disk, in the work folder and in the output.

Runs the participant level on one participant of a data set in a process of its own, and prints one
row. Memory is the proportional set size of all its processes together, looked at twice a second;
core seconds are those of the run and of the processes it waited for.

    python benchmarks/cost.py /data /scratch --participant-label 01 --offline
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

RUN = "import sys; from bagau_bids.cli.app import main; sys.exit(main())"


def main() -> None:
    """Run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("scratch", type=Path)
    args, options = parser.parse_known_args()
    out, work = args.scratch / "out", args.scratch / "work"
    for folder in (out, work):
        shutil.rmtree(folder, ignore_errors=True)
    command = [str(args.bids_dir), str(out), "participant", "--work-dir", str(work)]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", RUN, *command, "--nprocs", "1", *options])
    peak_gb = 0.0
    while process.poll() is None:
        peak_gb = max(peak_gb, memory_gb(process.pid))
        time.sleep(0.5)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"exit code {process.returncode}; {time.perf_counter() - start:.0f} s, "
        f"{used.ru_utime + used.ru_stime:.0f} core seconds, {peak_gb:.2f} GB at most, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    for folder in (work, out):
        files = [path for path in folder.rglob("*") if path.is_file()]
        folders = sum(path.is_dir() for path in folder.rglob("*"))
        size_mb = sum(path.stat().st_size for path in files) / 1e6
        print(f"{folder.name}: {len(files)} files, {folders} folders, {size_mb:.1f} MB")


def memory_gb(pid: int) -> float:
    """Proportional set size (GB) of a process and of all below it; 0 of those that have ended."""
    total = 0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return 0.0
    return total / 1e9


if __name__ == "__main__":
    main()
