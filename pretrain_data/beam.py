# SPDX-License-Identifier: Apache-2.0
"""Runs the passes of a build by Apache Beam: on this machine, Dataflow, Flink or Spark.

Beam distributes the numbers of the parts; what is done with a part, and where its result goes, is
`pretrain_data.passes` as anywhere. So the sources and the output must be where every worker reaches them: in an object
store, or on a file system that all of them mount. docs/data.md has the commands.
"""

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

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
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._options = PipelineOptions(list(arguments))
        self._options.view_as(SetupOptions).save_main_session = False

    def run(self, job: Job, name: str, numbers: Sequence[int]) -> None:
        """See `pretrain_data.workers.Workers`."""
        with beam.Pipeline(options=self._options) as pipeline:
            parts: Any = pipeline | "parts" >> beam.Create(list(numbers)) | beam.Reshuffle()
            _ = parts | name >> beam.ParDo(_RunPart(job, name))

    def close(self) -> None:
        """Nothing to let go: each pipeline ends with its pass."""
