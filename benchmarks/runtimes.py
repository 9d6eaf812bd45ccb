"""The network's forward by PyTorch, torch.compile, ONNX Runtime and OpenVINO, in CPU seconds.

Prints for each the CPU seconds and seconds of a slice, the rate in GFLOP a CPU second, what
loading takes, and the largest difference of the logits from those of plain PyTorch. In an
environment of its own, since the program needs none of these:

    pip install openvino onnxruntime onnx
    python benchmarks/runtimes.py --models small full --threads 1

A runtime that is not installed is left out.
"""

import argparse
import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bagau_bids.network.cards import find_weights
from bagau_bids.network.inference import for_inference
from bagau_bids.network.slices import PLANE_SIZE
from bagau_bids.network.weights import load_weights

Forward = Callable[[], NDArray[np.float32]]
RUNS = 4


def main() -> None:
    """Measure and print."""
    args = _parse()
    torch.set_num_threads(args.threads)
    print(
        f"| model, {args.threads} threads | CPU s a slice | s | GFLOP/CPU s | difference | load |"
    )
    print("|---|---|---|---|---|---|")
    for model in args.models:
        network = load_weights(find_weights(model)).model.eval()
        shape = (args.slices, 1, PLANE_SIZE, PLANE_SIZE)
        seeded = torch.Generator().manual_seed(0)
        given = {name: torch.rand(shape, generator=seeded) for name in network.inputs}
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            reference = network(**given).numpy()
        gflop = counter.get_total_flops() / 1e9
        for name, load in runtimes(network, given, args.threads):
            before = time.process_time()
            forward = load()
            forward()
            loading = time.process_time() - before
            cpu, wall, logits = fastest(forward)
            apart = np.abs(logits - reference).max()
            print(
                f"| {model}, {name} | {cpu / args.slices:.3f} | {wall / args.slices:.3f} | "
                f"{gflop / cpu:.0f} | {apart:.0e} | {loading:.1f} |",
                flush=True,
            )


def runtimes(
    network: nn.Module, given: dict[str, Tensor], threads: int
) -> Iterator[tuple[str, Callable[[], Forward]]]:
    """Yield each runtime that is there, and what loads the network into it."""
    laid_out = {
        name: one.contiguous(memory_format=torch.channels_last) for name, one in given.items()
    }

    def by_torch(model: Any, tensors: dict[str, Tensor]) -> Forward:
        def forward() -> NDArray[np.float32]:
            with torch.inference_mode():
                return model(**tensors).numpy()

        return forward

    yield "plain PyTorch", lambda: by_torch(network, given)
    yield "as the program runs it", lambda: by_torch(for_inference(network), laid_out)
    yield "torch.compile", lambda: by_torch(torch.compile(for_inference(network)), laid_out)
    if not find_spec("onnx"):
        return
    arrays = {name: one.numpy() for name, one in given.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = export(network, given, Path(folder) / "network.onnx")
        if find_spec("onnxruntime"):
            yield "ONNX Runtime", lambda: by_onnxruntime(path, arrays, threads)
        if find_spec("openvino"):
            yield "OpenVINO", lambda: by_openvino(path, arrays, threads)


def export(network: nn.Module, given: dict[str, Tensor], path: Path) -> Path:
    """Write a network with its batch norms folded as ONNX, for any number of slices."""
    folded = for_inference(network)
    for parameter in folded.parameters():
        parameter.data = parameter.data.contiguous()
    torch.onnx.export(
        folded,
        tuple(given[name] for name in network.inputs),
        str(path),
        input_names=list(network.inputs),
        dynamic_axes={name: {0: "slices"} for name in network.inputs},
        dynamo=False,
    )
    return path


def by_onnxruntime(path: Path, arrays: dict[str, NDArray[np.float32]], threads: int) -> Forward:
    """Load an ONNX file into ONNX Runtime, whose threads do not spin while they wait."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, arrays)[0]


def by_openvino(path: Path, arrays: dict[str, NDArray[np.float32]], threads: int) -> Forward:
    """Load an ONNX file into OpenVINO, in single precision."""
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    core = importlib.import_module("openvino").Core()
    request = core.compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda: next(iter(request.infer(arrays).values())).copy()


def fastest(forward: Forward) -> tuple[float, float, NDArray[np.float32]]:
    """CPU seconds and seconds of the fastest of some runs, and the logits."""
    figures = []
    for _ in range(RUNS):
        cpu, wall = time.process_time(), time.perf_counter()
        logits = forward()
        figures.append((time.process_time() - cpu, time.perf_counter() - wall))
    return *min(figures), logits


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["small", "full"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slices", type=int, default=4, help="at once")
    return parser.parse_args()


if __name__ == "__main__":
    main()
