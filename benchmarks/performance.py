"""How long a scan takes, step by step, beside what this machine can do at most.

For each scan, as DATASET:LABEL, the participant level is run in a fresh output and work folder,
then the same command again with nothing left to do, and medians are taken. Beside it: the
network's forward, as it is run and as plain float32 PyTorch runs it, and a matrix product.
Prints tables and stores them as JSON.

    python benchmarks/performance.py DATASET:LABEL --scratch DIR --runs 3 --threads 2 --offline

Options that it does not know are those of `bagau-bids`.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread

import torch
from cost import RUN, memory_gb
from torch.utils.flop_counter import FlopCounterMode

from bagau_bids.network.cards import find_weights
from bagau_bids.network.inference import for_inference, working_precision
from bagau_bids.network.slices import PLANE_SIZE
from bagau_bids.network.weights import load_weights

STEP = re.compile(r": (?P<name>[a-z ]+) done in (?:(?P<minutes>\d+) min )?(?P<seconds>[\d.]+) s")
BEGUN = re.compile(r"\] sub-\S+: started")
SLICES = 8
MATRIX = 2048


@dataclass(frozen=True)
class Run:
    """One run of the program: seconds and gigabytes."""

    wall: float
    core: float
    peak_gb: float
    begun: float
    steps: dict[str, float]


def main() -> None:
    """Run everything, print, store."""
    args = _parse()
    options = [*args.options, "--model", args.model]
    options += ["--nprocs", str(args.threads), "--omp-nthreads", str(args.threads)]
    found = {
        "machine": {
            "processor": processor(),
            "threads": args.threads,
            "load_before": os.getloadavg()[0],
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "options": options,
        "network": network_speed(args.model, args.threads, args.runs),
        "scans": {},
    }
    for name in args.scans:
        dataset, _, label = name.rpartition(":")
        command = [dataset, str(args.scratch / "out"), "participant", "--participant-label", label]
        command += ["--work-dir", str(args.scratch / "work"), *options]
        fresh, again = [], []
        for _ in range(args.runs):
            for folder in ("out", "work"):
                shutil.rmtree(args.scratch / folder, ignore_errors=True)
            fresh.append(measure(command))
            again.append(measure(command))
        found["scans"][name] = {"fresh": median(fresh), "again": median(again)}
    print(as_text(found))
    if args.store:
        args.store.write_text(json.dumps(found, indent=2) + "\n")


def measure(command: list[str]) -> Run:
    """Run the program once; refuse a run that failed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    lines: list[tuple[float, str]] = []

    def listen() -> None:
        for line in process.stderr or ():
            lines.append((time.perf_counter() - start, line.decode(errors="replace")))

    listener = Thread(target=listen)
    listener.start()
    peak_gb = 0.0
    while process.poll() is None:
        peak_gb = max(peak_gb, memory_gb(process.pid))
        time.sleep(0.5)
    wall = time.perf_counter() - start
    listener.join()
    if process.returncode:
        raise SystemExit("".join(line for _, line in lines))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    core = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    steps = {}
    for _, line in lines:
        if match := STEP.search(line):
            steps[match["name"]] = 60 * float(match["minutes"] or 0) + float(match["seconds"])
    begun = next((after for after, line in lines if BEGUN.search(line)), wall)
    return Run(wall, core, peak_gb, begun, steps)


def median(runs: list[Run]) -> dict[str, object]:
    """Return the median of each figure, and how far the walls lie apart."""
    steps = defaultdict(list)
    for run in runs:
        for name, seconds in run.steps.items():
            steps[name].append(seconds)
    figures = [{**asdict(run), "steps": None} for run in runs]
    return {
        **{
            name: round(statistics.median(figure[name] for figure in figures), 2)
            for name in ("wall", "core", "peak_gb", "begun")
        },
        "wall_range": [round(end(run.wall for run in runs), 2) for end in (min, max)],
        "steps": {name: statistics.median(seconds) for name, seconds in steps.items()},
    }


def network_speed(model: str, threads: int, runs: int) -> dict[str, float | str]:
    """Time the forward of some slices, as it is run and plainly, beside a matrix product."""
    torch.set_num_threads(threads)
    network = load_weights(find_weights(model)).model
    shape = (SLICES, 1, PLANE_SIZE, PLANE_SIZE)
    given = {name: torch.rand(shape) for name in network.inputs}
    turned = {
        name: one.contiguous(memory_format=torch.channels_last) for name, one in given.items()
    }
    quick, precision = for_inference(network), working_precision(torch.device("cpu"))
    square = torch.rand(MATRIX, MATRIX, dtype=precision)

    def as_run() -> None:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            quick(**turned)

    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            network(**given)
        flop = counter.get_total_flops()
        plain, own = fastest(lambda: network(**given), runs), fastest(as_run, runs)
        product = fastest(lambda: square @ square, 3 * runs)
    return {
        "model": model,
        "precision": str(precision).removeprefix("torch."),
        "tflop": round(flop / SLICES / 1e12, 3),
        "plain_s": round(plain / SLICES, 3),
        "as_run_s": round(own / SLICES, 3),
        "as_run_gflops": round(flop / own / 1e9, 1),
        "matrix_product_gflops": round(2 * MATRIX**3 / product / 1e9, 1),
    }


def fastest(work: Callable[[], object], runs: int) -> float:
    """Seconds of the fastest of some runs after a first one."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def as_text(found: dict) -> str:
    """Write the tables as Markdown."""
    net, machine = found["network"], found["machine"]
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, load before "
        f"{machine['load_before']:.1f}",
        f"{net['model']} ({net['precision']}): {net['as_run_s']} s a slice of {net['tflop']} "
        f"TFLOP, {net['as_run_gflops']} GFLOP/s; plain float32 {net['plain_s']} s; matrix product "
        f"{net['matrix_product_gflops']} GFLOP/s",
    ]
    for name, scan in found["scans"].items():
        fresh, again = scan["fresh"], scan["again"]
        low, high = fresh["wall_range"]
        shares = ", ".join(f"{step} {seconds:.1f}" for step, seconds in fresh["steps"].items())
        lines += [
            f"{name}: {fresh['wall']:.1f} s ({low:.1f} to {high:.1f}), {fresh['core']:.1f} core "
            f"seconds, {fresh['peak_gb']:.2f} GB at most; begun after {fresh['begun']:.1f} s; "
            f"again {again['wall']:.1f} s",
            f"  seconds of steps: {shares}",
        ]
    return "\n".join(lines)


def processor() -> str:
    """Name of the processor and what it computes with."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    flags = set(text.split())
    kinds = [kind for kind in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if kind in flags]
    return f"{name[1] if name else platform.processor()} ({' '.join(kinds)})"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scans", nargs="+", metavar="DATASET:LABEL")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="small", help="of the runs and of the forward")
    parser.add_argument("--scratch", type=Path, required=True, help="emptied between runs")
    parser.add_argument("--store", type=Path, help="JSON file")
    args, args.options = parser.parse_known_args()
    return args


if __name__ == "__main__":
    main()
