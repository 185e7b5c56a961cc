"""Imported once by the server that workers are forked from, so that a worker starts in a fraction of a second."""

from pipelines.runner import quiet_beam

quiet_beam()

import apache_beam.runners.worker.sdk_worker  # noqa: E402, F401
import pyarrow.parquet  # noqa: E402, F401

import pipelines.dofns  # noqa: E402, F401
