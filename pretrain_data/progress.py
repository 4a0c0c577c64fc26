# SPDX-License-Identifier: Apache-2.0
"""Progress on standard error: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from pretrain_data.corpora import Document, Source

_LINE_SECONDS = 10.0


def documents_of(sources: list[Source], task: str) -> Iterator[Document]:
    """Yields the documents of all sources in order and shows how far they are read.

    Args:
        sources: read one after the other.
        task: what is being done, such as "reading".
    """
    total = sum(source.size for source in sources)
    interactive = sys.stderr.isatty()
    said = time.monotonic()
    done = count = 0
    with tqdm(
        total=total, desc=task, unit="B", unit_scale=True, disable=not interactive, leave=False, dynamic_ncols=True
    ) as bar:
        for source in sources:
            for document in source.documents():
                yield document
                size = document.size
                done, count = done + size, count + 1
                bar.update(size)
                if not interactive and time.monotonic() - said > _LINE_SECONDS:
                    said = time.monotonic()
                    print(
                        f"{task}: {done / 1e6:.1f} of {total / 1e6:.1f} MB, {count:,} documents",
                        file=sys.stderr,
                        flush=True,
                    )
