"""Synthetic slices drawn beside a training, into a store on its device.

With a GPU they are drawn there, by a thread of the trainer's own process; without one by worker
processes of one BLAS thread each: products of many threads in many processes take the cores from
each other. How much is drawn follows what is used: each slice about as often as asked for.
"""

import logging
import math
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event, Semaphore
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from bagau_bids.errors import ProcessingError
from bagau_bids.synthesis.heads import load_training_heads, synthetic_shards
from bagau_bids.training.sources import SliceStore, StoredSlices

SLICES_OF_A_SCAN = 24  # about; a scan gives at most 32
BLAS_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PATIENCE_SECONDS = 1.0  # after which a drawer that waits looks whether it shall end

log = logging.getLogger(__name__)


class Drawing:
    """Draws synthetic slices into a store until it is stopped.

    Parameters
    ----------
    heads_dir : Path
        Prepared heads.
    store : SliceStore
    seed : int
    first : int
        Number of the first scan of the stream; scan ``n`` depends on the seed and ``n`` alone.
    workers : int
        Processes that draw on the CPU; 0 to draw on the device, in a thread.
    """

    def __init__(
        self, heads_dir: Path, store: SliceStore, seed: int, first: int = 0, workers: int = 0
    ) -> None:
        self.heads_dir, self.store, self.seed = heads_dir, store, seed
        self.workers, self.first = workers, first
        self.permitted = 0
        self.drawn = 0  # scans that are in the store or have been
        self._failure: BaseException | None = None
        context = torch.multiprocessing.get_context("spawn")
        self._context: SpawnContext = context
        self._permits = context.Semaphore(0)
        self._stop = context.Event()
        self._arrivals: Queue[StoredSlices | str] = context.Queue()
        self._processes: list[Any] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to draw what is permitted."""
        if self.workers:
            with _one_blas_thread():
                for number in range(self.workers):
                    process = self._context.Process(
                        target=_draw_in_process,
                        args=(
                            self.heads_dir,
                            self.seed,
                            (self.first + number, self.workers),
                            self._permits,
                            self._stop,
                            self._arrivals,
                        ),
                        daemon=True,
                    )
                    process.start()
                    self._processes.append(process)
        self._thread.start()

    def permit(self, slices: float) -> None:
        """Let so many slices be drawn in all, counted from the start."""
        wanted = math.ceil(slices / SLICES_OF_A_SCAN)
        while self.permitted < wanted:
            self._permits.release()
            self.permitted += 1

    def check(self) -> None:
        """Raise what ended the drawing.

        Raises
        ------
        ProcessingError
            If a drawer failed.
        """
        if self._failure is not None:
            raise ProcessingError(
                f"{self.heads_dir}: drawing synthetic slices failed ({self._failure}); check the "
                "heads, prepare them again if they are damaged"
            ) from self._failure

    def stop(self) -> None:
        """End all drawers."""
        self._stop.set()
        self._thread.join()
        for process in self._processes:
            process.join(timeout=2 * PATIENCE_SECONDS)
            if process.is_alive():
                process.kill()

    def _run(self) -> None:
        try:
            if self.workers:
                self._collect()
            else:
                self._draw_here()
        except Exception as error:
            self._failure = error

    def _collect(self) -> None:
        while not self._stop.is_set():
            try:
                arrived = self._arrivals.get(timeout=PATIENCE_SECONDS)
            except queue.Empty:
                self._check_processes()
                continue
            if isinstance(arrived, str):
                raise ProcessingError(arrived)
            self._put(arrived)

    def _check_processes(self) -> None:
        for process in self._processes:
            if process.exitcode not in (None, 0) and not self._stop.is_set():
                raise ProcessingError(f"a drawing process ended with code {process.exitcode}")

    def _draw_here(self) -> None:
        heads = load_training_heads(self.heads_dir)
        device = self.store.device
        number = self.first
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        while not self._stop.is_set():
            if not self._permits.acquire(timeout=PATIENCE_SECONDS):
                continue
            with torch.cuda.stream(stream):
                shards = list(
                    synthetic_shards(heads, range(number, number + 1), self.seed, str(device))
                )
            for shard in shards:
                self._put(StoredSlices.of(shard))
            number += 1

    def _put(self, slices: StoredSlices) -> None:
        self.store.add(slices)
        self.drawn += 1


def _draw_in_process(
    heads_dir: Path,
    seed: int,
    numbers: tuple[int, int],
    permits: Semaphore,
    stop: Event,
    arrivals: "Queue[StoredSlices | str]",
) -> None:
    """Draw scans, every so-and-so-many of the stream, until told to stop."""
    torch.set_num_threads(1)
    number, step = numbers
    try:
        heads = load_training_heads(heads_dir)
        with threadpool_limits(1):
            while not stop.is_set():
                if os.getppid() == 1:  # the trainer was killed
                    return
                if not permits.acquire(timeout=PATIENCE_SECONDS):
                    continue
                for shard in synthetic_shards(heads, range(number, number + 1), seed):
                    arrivals.put(StoredSlices.of(shard))
                number += step
    except Exception as error:
        arrivals.put(f"{type(error).__name__}: {error}")
    finally:
        if stop.is_set():
            arrivals.cancel_join_thread()


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Have processes that are started meanwhile use one thread in each library."""
    before = {name: os.environ.get(name) for name in BLAS_THREADS}
    os.environ.update(dict.fromkeys(BLAS_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
