# SPDX-License-Identifier: Apache-2.0
"""Runs the passes of a build by Apache Beam: on this machine, Dataflow, Flink or Spark.

Beam distributes the numbers of the parts; what is done with a part, and where its result goes, is
`pretrain_data.passes` as anywhere. So the sources and the output must be where every worker reaches them: in an object
store, or on a file system that all of them mount. docs/data.md has the commands.
"""

import re
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

from albert_jax.errors import UserError
from pretrain_data import passes
from pretrain_data.passes import Job


class _RunPart(beam.DoFn):
    """Runs one pass over a part."""

    def __init__(self, job: Job, name: str) -> None:
        self._job, self._name = job, name

    def process(self, number: int) -> list[int]:
        """The part's number, when its result is in the workplace."""
        return [passes.run(self._job, self._name, number)]


class BeamWorkers:
    """Runs every pass as a pipeline of its own.

    Args:
        arguments: Beam's pipeline options, as on its command line, the runner included.

    Raises:
        UserError: Beam knows no such runner, or the runner lacks an option.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._options = PipelineOptions(list(arguments))
        self._options.view_as(SetupOptions).save_main_session = False
        try:
            beam.Pipeline(options=self._options)
        except ValueError as error:
            raise UserError(
                f"Apache Beam refuses its options ({' '.join(str(error).split()).rstrip('.')}); see docs/data.md and "
                "what Beam says of the runner"
            ) from error

    def run(self, job: Job, name: str, numbers: Sequence[int]) -> None:
        """See `pretrain_data.workers.Workers`.

        Raises:
            UserError: what a worker met.
        """
        try:
            with beam.Pipeline(options=self._options) as pipeline:
                parts: Any = pipeline | "parts" >> beam.Create(list(numbers)) | beam.Reshuffle()
                _ = parts | name >> beam.ParDo(_RunPart(job, name))
        except Exception as error:  # a runner passes a worker's error on as text
            told = re.search(r"UserError: (.+?)(?: \[while running .*)?$", str(error), re.MULTILINE)
            if told:
                raise UserError(told.group(1)) from error
            raise

    def close(self) -> None:
        """Nothing to let go: each pipeline ends with its pass."""
