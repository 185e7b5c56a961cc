"""Imported once by the server that workers are forked from, so that a worker starts in a fraction of a second."""

import signal

# Ctrl-C ends the driver, which ends its workers; their own stacks would only hide what it says.
signal.signal(signal.SIGINT, signal.SIG_IGN)

from pipelines.runner import quiet_beam  # noqa: E402  after the signal is ignored

quiet_beam()

import apache_beam.runners.worker.sdk_worker  # noqa: E402, F401
import pyarrow.parquet  # noqa: E402, F401

import pipelines.dofns  # noqa: E402, F401
