"""Run a Beam pipeline: embedded on all cores by default, on any named Beam runner otherwise.

The embedded default is `FnApiRunner` by name. Beam's own default first tries to download and run a Go binary, so the
same script would run on different engines on different machines. Three facts about FnApiRunner shape this file, all
measured (Beam 2.77):

* made by name it hands no pipeline options to its workers, so the provision info is built here;
* a timer that flushes a worker's output stream while it is being written loses data silently in threaded mode, so
  that timer is off and threaded mode is never used;
* a worker process killed in a last stage hangs the run for ever, so our workers are watched, and one that dies
  aborts the run. They are forked from a server that has imported Beam already: 0.3 s instead of 5 to 11.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

EMBEDDED = "FnApiRunner"
WORKER_URN = "webtext:environment:forked:v1"
PRELOAD = ("pipelines.preload",)
PR_SET_PDEATHSIG = 1


class RunError(Exception):
    """A pipeline did not finish; the message says which stage and why."""


@dataclass(frozen=True)
class RunnerOptions:
    """Which Beam runner, with how many embedded worker processes (0: one per core), and options passed through."""

    name: str = EMBEDDED
    workers: int = 0
    passthrough: tuple[str, ...] = ()
    plan: bool = False
    """Run nothing: the first stage that is not current raises instead. How `status` asks what a build would do."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (one per core) or more, not {self.workers}")
        if self.name in ("DirectRunner", "SwitchingDirectRunner", "DaskRunner"):
            raise ValueError(
                f"runner {self.name} is not supported: use {EMBEDDED} (the default), PortableRunner, SparkRunner, "
                "FlinkRunner or DataflowRunner. DirectRunner downloads a binary and changes engine with the network; "
                "DaskRunner drops outputs silently"
            )
        if any("multi_threading" in option for option in self.passthrough):
            raise ValueError("direct_running_mode=multi_threading loses data silently; leave it out")

    @property
    def processes(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))


def quiet_beam() -> None:
    """Import Beam without its import-time warning, which would also install a log handler before ours."""
    root = logging.getLogger()
    if not root.handlers:
        console = logging.StreamHandler()
        console.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        root.addHandler(console)
        root.setLevel(logging.WARNING)
    for handler in root.handlers:
        handler.addFilter(lambda record: "apitools not found" not in record.getMessage())
    import apache_beam  # noqa: F401  imported here for its side effect, once, quietly

    # What Beam logs of a failure is its own stack, hundreds of lines a worker; a stage tells the cause itself.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


def start_fork_server() -> None:
    """Start the server that workers are forked from; it imports Beam while the caller does."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    forkserver.ensure_running()


def _serve(control_address: str, worker_id: str, parent: int) -> None:
    """A worker process: serve bundles until the runner closes the channel or dies."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_beam()
    logging.disable(logging.ERROR)
    from apache_beam.runners.worker import sdk_worker

    # The harness prints a failed bundle's whole stack; the failing task has already left its own words.
    vars(sdk_worker)["print"] = lambda *_, **__: None
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    sdk_worker.SdkHarness(
        control_address, worker_id=worker_id, state_cache_size=100 << 20, data_buffer_time_limit_ms=0
    ).run()


def _die_with(parent: int) -> None:
    """End this process when the run's driver is gone: an orphan must not go on writing beside the next build."""
    while True:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os._exit(3)
        time.sleep(0.5)


_deaths: list[str] = []
"""What the watchers of worker processes saw in this run; the runner's own error says only that a channel closed."""


def _register_environment() -> Any:
    """The Beam environment whose workers `_serve` forks; registered once per process."""
    from apache_beam.runners.portability.fn_api_runner import worker_handlers
    from apache_beam.transforms import environments

    if WORKER_URN not in worker_handlers.WorkerHandler._registered_environments:

        @worker_handlers.WorkerHandler.register_environment(WORKER_URN, bytes)
        class ForkedWorker(worker_handlers.GrpcWorkerHandler):  # type: ignore[misc,unused-ignore]  # Beam has no types
            def __init__(self, payload: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
                super().__init__(state, provision_info, grpc_server)
                self._stopping = False

            def start_worker(self) -> None:
                context = multiprocessing.get_context("forkserver")
                self._process = context.Process(
                    target=_serve, args=(self.control_address, self.worker_id, os.getpid()), name=self.worker_id
                )
                self._process.start()
                threading.Thread(target=self._watch, daemon=True).start()

            def _watch(self) -> None:
                self._process.join()
                if not self._stopping:
                    code = self._process.exitcode
                    how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
                    _deaths.append(f"worker process {self._process.pid} died ({how})")
                    self._fail(RunError(_deaths[-1]))

            def _fail(self, error: RunError) -> None:
                """End every wait for a dead worker: for data, which it may never have connected for, and for
                answers, also to what is asked of it only now."""
                self.data_conn._exception = error
                while not self._stopping:
                    for answer in list(self.control_conn._futures_by_id.values()):
                        answer.abort(error)
                    time.sleep(0.1)

            def close(self) -> None:
                self._stopping = True
                super().close()

            def stop_worker(self) -> None:
                self._process.join(5)
                if self._process.is_alive():
                    self._process.kill()
                    self._process.join()

        @environments.Environment.register_urn(WORKER_URN, bytes)
        class ForkedEnvironment(environments.Environment):  # type: ignore[misc,unused-ignore]  # Beam has no types
            @staticmethod
            def from_runner_api_parameter(payload: Any, capabilities: Any, artifacts: Any, context: Any) -> Any:
                return ForkedEnvironment(capabilities=capabilities, artifacts=artifacts)

            def to_runner_api_parameter(self, context: Any) -> tuple[str, bytes]:
                return WORKER_URN, b""

        _register_environment.environment = ForkedEnvironment  # type: ignore[attr-defined]
    environment = _register_environment.environment  # type: ignore[attr-defined]
    return environment(capabilities=environments.python_sdk_capabilities(), artifacts=())


def _embedded_runner(options: Any, processes: int) -> Any:
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner, worker_handlers
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0
    provision = fn_runner.ExtendedProvisionInfo(
        beam_provision_api_pb2.ProvisionInfo(
            pipeline_options=JobServiceHandle.encode_pipeline_options(options.get_all_options())
        )
    )
    environment = _register_environment() if processes > 1 else None
    return fn_runner.FnApiRunner(default_environment=environment, provision_info=provision)


def _quiet_channel_errors(arguments: threading.ExceptHookArgs) -> None:
    """A dead worker's channels end with an RpcError in each thread that reads one; that is not news."""
    if arguments.exc_type.__name__ != "RpcError":
        threading.__excepthook__(arguments)


@contextlib.contextmanager
def _deaths_noted() -> Iterator[None]:
    _deaths.clear()
    hook, threading.excepthook = threading.excepthook, _quiet_channel_errors
    try:
        yield
    except Exception as error:
        if _deaths:
            raise RunError(
                f"{_deaths[0]}; the run was ended, nothing half-written remains, and the same command resumes it. "
                "If it was killed for memory, use fewer workers"
            ) from error
        raise
    finally:
        threading.excepthook = hook


def run_pipeline(construct: Callable[[Any], None], runner: RunnerOptions, label: str) -> None:
    """Construct a pipeline on the named runner and run it to its end. Raises RunError when a worker dies."""
    if runner.name == EMBEDDED and runner.processes > 1:
        start_fork_server()
    quiet_beam()
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    arguments = list(runner.passthrough)
    if runner.name == EMBEDDED:
        arguments += [f"--direct_num_workers={runner.processes}", "--default_sdk_harness_log_level=ERROR"]
        options = PipelineOptions(arguments)
        engine: Any = _embedded_runner(options, runner.processes)
    else:
        options = PipelineOptions([*arguments, f"--runner={runner.name}", f"--job_name=webtext-{label}"])
        engine = runner.name
    with _deaths_noted():
        pipeline = beam.Pipeline(runner=engine, options=options)
        construct(pipeline)
        result = pipeline.run()
        state = result.wait_until_finish()
        if str(state) not in ("DONE", "None"):
            raise RunError(f"{label}: runner {runner.name} ended in state {state}; see its log")
