"""Scans a minute where one device computes the network and processors prepare scans for it.

Each FLAIR is read, its brain outlined, its bias field taken off, and the template registered by
one of several processes, one scan each at a time; this process runs the network on whatever is
ready, as the program does, with a batch of slices at once. Prints scans a minute, what share of
the time the device was at work, and how many processes would keep it at work. Then the network
alone, on slices of all scans together, by precision.

    python benchmarks/throughput.py --times 64 --workers 16 --device cuda --batch-size 64

On a machine without a GPU it is a rehearsal: --device cpu --times 2 --workers 1 --method sloppy.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bagau_bids.network.cards import find_weights
from bagau_bids.network.inference import choose_device, for_inference, segment
from bagau_bids.network.slices import NetworkInput, network_input
from bagau_bids.network.weights import LoadedNetwork, load_weights
from bagau_bids.preprocessing.conform import conform
from bagau_bids.preprocessing.recipe import preprocess
from bagau_bids.preprocessing.template import Template, find_template
from bagau_bids.workflow.step import limited_threads, set_torch_threads

TEMPLATE = "MNI152NLin2009cSym"
EXAMPLE = files("bagau_bids.data").joinpath("example", "FLAIR.nii.gz")


@dataclass(frozen=True)
class Ready:
    """A scan that is ready for the network, and the seconds that this took."""

    inputs: NetworkInput
    brain: NDArray[np.bool_]
    seconds: float


def main() -> None:
    """Measure, print, store."""
    args = _parse()
    device = choose_device(args.device)
    network = load_weights(find_weights(args.model))
    template = find_template(
        TEMPLATE, args.templateflow_home, offline=args.offline, cache_dir=args.scratch
    )
    found, scans = overlapped(args, network, template, device)
    found |= {"device": str(device), "gpu": _name(device), "processors": os.cpu_count()}
    found["network_alone"] = alone(network, scans, device, args.batch_size)
    print(json.dumps(found, indent=2))
    if args.store:
        args.store.write_text(json.dumps(found, indent=2) + "\n")


def overlapped(
    args: argparse.Namespace, network: LoadedNetwork, template: Template, device: torch.device
) -> tuple[dict[str, object], list[Ready]]:
    """Prepare scans in several processes and segment each as soon as it is ready."""
    paths = args.flairs * args.times
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        list(pool.map(_warm, range(args.workers)))  # processes start, and load what they need
        begun, at_work, scans = time.perf_counter(), 0.0, list[Ready]()
        work = partial(prepare, template=template, method=args.method)
        for future in as_completed([pool.submit(work, path) for path in paths]):
            ready = future.result()
            started = time.perf_counter()
            segment(
                [network], ready.inputs, ready.brain, device=device, batch_size=args.batch_size
            )
            at_work += time.perf_counter() - started
            scans.append(ready)
        wall = time.perf_counter() - begun
    preparing = statistics.mean(scan.seconds for scan in scans)
    figures = {
        "model": args.model,
        "scans": len(scans),
        "workers": args.workers,
        "scans_a_minute": round(60 * len(scans) / wall, 2),
        "seconds_to_prepare_a_scan": round(preparing, 2),
        "seconds_of_the_device_a_scan": round(at_work / len(scans), 3),
        "share_of_time_the_device_works": round(at_work / wall, 3),
        "workers_that_keep_it_at_work": round(preparing * len(scans) / at_work, 1),
    }
    return figures, scans


def prepare(path: Path, template: Template, method: str) -> Ready:
    """Turn a FLAIR into what the network takes, on one thread."""
    started = time.perf_counter()
    with limited_threads(1):
        set_torch_threads(1)
        done = preprocess(conform(path), template, method=method)
        brain = done.brain.mask
        inputs = network_input(done.corrected, brain, done.registration.wm_probseg)
    return Ready(inputs, brain, time.perf_counter() - started)


def _warm(number: int) -> int:
    time.sleep(1)  # so that every process gets one of these
    return number


def alone(
    network: LoadedNetwork, scans: Sequence[Ready], device: torch.device, batch_size: int
) -> dict[str, dict[str, float]]:
    """Time the forward on the slices of all scans together, by precision."""
    slices = {
        name: np.concatenate(
            [one.inputs.channels[name][one.inputs.brain.any(axis=(1, 2))] for one in scans]
        )
        for name in network.inputs
    }
    model, found = for_inference(network.model).to(device), {}
    for name in ("float32", "tf32", "bfloat16") if device.type == "cuda" else ("float32",):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        seconds = []
        for _ in range(3):  # the first finds the quickest kernels
            started = time.perf_counter()
            _forward(model, slices, device, batch_size, reduced=name == "bfloat16")
            seconds.append(time.perf_counter() - started)
        count, best = len(next(iter(slices.values()))), min(seconds[1:])
        found[name] = {
            "milliseconds_a_slice": round(1000 * best / count, 3),
            "scans_a_minute": round(60 * len(scans) / best, 1),
        }
    return found


def _forward(
    model: nn.Module,
    slices: dict[str, NDArray[np.float32]],
    device: torch.device,
    batch_size: int,
    *,
    reduced: bool,
) -> None:
    """Take all slices to the device, through the network, and back."""
    count = len(next(iter(slices.values())))
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        for first in range(0, count, batch_size):
            given = {
                name: torch.from_numpy(array[first : first + batch_size])[:, None]
                .to(device)
                .contiguous(memory_format=torch.channels_last)
                for name, array in slices.items()
            }
            torch.sigmoid(model(**given).float()).cpu()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "none"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flairs", type=Path, nargs="*", help="default: the package's example")
    parser.add_argument("--times", type=int, default=1, help="that each FLAIR is taken")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=64, help="slices at once")
    parser.add_argument("--model", default="small")
    parser.add_argument("--method", default="robust", help="of the registration")
    parser.add_argument("--templateflow-home", type=Path)
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--scratch", type=Path, default=Path("build"), help="for the template")
    parser.add_argument("--store", type=Path, help="JSON file")
    args = parser.parse_args()
    args.flairs = args.flairs or [Path(str(EXAMPLE))]
    return args


if __name__ == "__main__":
    main()
