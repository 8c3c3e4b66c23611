"""Several processes for one run: started here or by torchrun, watched, and ended together.

`--devices N` starts N − 1 more processes of the same command, as `torchrun --nproc-per-node N` starts N of them. They
meet in a process group (gloo on the CPU, NCCL on GPUs). If one of them fails the others wait in vain for its part of a
sum, so process 0 watches those that it started and ends with one line that says what happened; they watch process 0.
Under torchrun, torchrun does this.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import IO, Any

import torch
import torch.distributed as dist

from das3.errors import RecipeError, TrainingError, without_page

__all__ = ["is_started_by_das3", "processes", "strategy"]

STARTED = "DAS3_STARTED_BY"
"""Environment variable by which a process knows that process 0 of its run started it."""
POLL_SECONDS = 0.2
"""How often the processes look after each other."""
GRACE_SECONDS = 5.0
"""How long process 0 may take to notice by itself that another process is gone, and that one to end and say why."""
TIMEOUT = timedelta(hours=24)
"""Of collectives. Processes are watched, so that a long wait is never one for a process that is gone."""


def is_started_by_das3() -> bool:
    """Whether this process is one that process 0 of a run started beside itself."""
    return STARTED in os.environ


def _is_started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def strategy(devices: int | str) -> dict[str, Any]:
    """Arguments of `Fabric` for this process: one device, or one of several processes' devices.

    Args:
        devices: how many there are on this machine; what torchrun says goes first.
    """
    if not (is_started_by_das3() or _is_started_by_torchrun() or _Others.current):
        return {"devices": devices}
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    class AveragedGradients(DDPStrategy):  # type: ignore[misc]
        """Processes without DistributedDataParallel: the loop averages gradients itself.

        DDP wants every parameter to get a gradient in every step, which auxiliary heads do not; and it sends gradients
        in the middle of the backward pass, between the collectives of synchronised batch norm.
        """

        def setup_module(self, module: Any) -> Any:
            return module

    # Named, or in a Slurm job Fabric would take each of its tasks for a process.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # five lines on how the processes met
    environment = TorchElasticEnvironment() if _is_started_by_torchrun() else LightningEnvironment()
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    chosen = AveragedGradients(timeout=TIMEOUT)
    return {"devices": local, "num_nodes": world // local, "strategy": chosen, "plugins": [environment]}


@contextmanager
def processes(devices: int) -> Iterator[None]:
    """Within, the run has its processes; afterwards the process group and those that were started are gone.

    Args:
        devices: how many processes, where torchrun has not started any.

    Raises:
        RecipeError: if they can't be started from here.
        TrainingError: if another process failed.
        SystemExit: at the end, in processes that were started here: their program goes on in process 0 alone.
    """
    if is_started_by_das3() or _is_started_by_torchrun():
        _end_with_parent()
        yield
        if is_started_by_das3():
            # Left open, gloo's group now and then aborted a process that had come to its end (SIGABRT); NCCL's might
            # wait for process 0, which waits for this process.
            if dist.is_initialized() and dist.get_backend() == "gloo":
                dist.destroy_process_group()
            raise SystemExit(0)
        return
    if devices == 1:
        yield
        return
    others = _Others(devices)
    try:
        yield
    except Exception as error:
        others.explain(error)
        raise
    else:
        others.wait()
    finally:
        others.end()


def _end_with_parent() -> None:
    """End when the process that started this one is gone, however it went: nobody waits for the result any more."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="das3-parent").start()


class _Others:
    """The processes beside process 0, and the environment in which all of them find each other."""

    current: _Others | None = None
    started = False

    def __init__(self, count: int) -> None:
        self.count, self.before, self.threads = count, dict(os.environ), torch.get_num_threads()
        command = _own_command(count)
        _Others.started, _Others.current = True, self
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "NODE_RANK": "0",
        }
        self.logs: list[IO[bytes]] = []
        self.running: list[subprocess.Popen[bytes]] = []
        for rank in range(1, count):
            self.logs.append(tempfile.TemporaryFile())  # noqa: SIM115
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), STARTED: str(os.getpid())}
            self.running.append(self._start(command, {**os.environ, **shared, **place}, self.logs[-1]))
        os.environ.update(shared, RANK="0", LOCAL_RANK="0")
        self.done = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="das3-processes").start()

    @staticmethod
    def _start(command: list[str], environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C reaches process 0 alone, which ends the others.
        return subprocess.Popen(
            command, env=dict(environment), stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
        )

    def _failed(self) -> int | None:
        """Number of the process that failed first, as far as can be told."""
        failed = [rank for rank, process in enumerate(self.running, 1) if process.poll()]
        # One that was killed, or could say why it ended, is the cause; others ended since they lost it.
        status = {rank: self.running[rank - 1].returncode for rank in failed}
        return min(failed, key=lambda rank: (status[rank] > 0, status[rank] != 2, rank), default=None)

    def _reason(self, rank: int) -> str:
        """What a process that failed said last, in one line."""
        log, status = self.logs[rank - 1], self.running[rank - 1].returncode
        log.seek(0)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        told = [line.removeprefix("das3: error: ") for line in lines if line.startswith("das3: error: ")]
        if told:
            return without_page(told[-1])
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        last = f" ({lines[-1].strip()[:300]})" if lines else ""
        return f"process {rank} of {self.count} {how}{last}; go on with --resume"

    def explain(self, error: Exception) -> None:
        """Raise what another process failed of, where a lost connection to it is why this one can't go on.

        Raises:
            TrainingError: instead of the error that came of it.
        """
        if not (isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error))):
            return
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            if (rank := self._failed()) is not None:
                raise TrainingError(self._reason(rank)) from error
            time.sleep(POLL_SECONDS / 4)
        text = f"a process of this run is gone, of {self.count}, and did not say why; go on with --resume"
        raise TrainingError(text) from error

    def _watch(self) -> None:
        """End process 0 if it waits for a process that is gone, which with NCCL it would do for ever."""
        while not self.done.wait(POLL_SECONDS):
            rank = self._failed()
            if rank is not None and not self.done.wait(GRACE_SECONDS):
                print(f"das3: error: {self._reason(rank)}", file=sys.stderr, flush=True)
                self._kill()
                os._exit(2)

    def wait(self) -> None:
        """Let the others come to their end.

        Raises:
            TrainingError: if one of them does not come to a good one.
        """
        deadline = time.monotonic() + 12 * GRACE_SECONDS
        for process in self.running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return  # the run is whole; `end` does the rest
        if (rank := self._failed()) is not None:
            raise TrainingError(self._reason(rank))

    def _kill(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()

    def end(self) -> None:
        """End what still runs, and leave the environment as it was."""
        self._kill()
        if dist.is_initialized():
            dist.destroy_process_group()  # watched: with NCCL it may wait for those that are gone
        self.done.set()
        for process in self.running:
            process.wait()
        for log in self.logs:
            log.close()
        os.environ.clear()
        os.environ.update(self.before)
        torch.set_num_threads(self.threads)
        _Others.current = None


def _own_command(count: int) -> list[str]:
    """The command that this program was started by.

    Raises:
        RecipeError: if there is none that does the same once more.
    """
    import __main__

    remedy = f"start the program by `torchrun --nproc-per-node {count}`"
    if multiprocessing.parent_process() is not None or not hasattr(__main__, "__file__"):
        raise RecipeError(f"devices={count} needs a program that can be started {count} times; {remedy}")
    if _Others.started:
        # The processes of a second run would do the first one again.
        raise RecipeError(f"a program can start one run with devices={count}; for several, {remedy}")
    if __main__.__spec__ is not None:
        return [sys.executable, "-m", __main__.__spec__.name.removesuffix(".__main__"), *sys.argv[1:]]
    return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
