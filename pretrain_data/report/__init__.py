# SPDX-License-Identifier: Apache-2.0
"""One HTML page about a data set: what it holds, and what training makes of it under a recipe.

`numbers` counts, as plain arrays; `pictures` draws them; `page` writes it all down. Time and memory are bounded:
documents and sentences are counted from the index, everything else is measured on a sample, and the page says how large
it was.
"""

import pathlib

import ml_collections

from albert_jax.data.staging import staged
from albert_jax.data.store import read_manifest
from albert_jax.errors import UserError
from pretrain_data.report.numbers import measure
from pretrain_data.report.page import render
from pretrain_data.show import with_data


def report(data: str | pathlib.Path, config: ml_collections.ConfigDict, out: str | pathlib.Path) -> None:
    """Writes the page.

    Args:
      data: the data set's directory, or its address in an object store.
      config: the recipe, see `albert_jax.training.recipe`; its data.path is not read.
      out: the file, whose name ends in .html; it is replaced.

    Raises:
      UserError: where matplotlib is missing, `out` is no such name, or data set and recipe do not fit together.
    """
    out = pathlib.Path(out)
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"--out {str(out)!r} must name a file that ends in .html.")
    require_matplotlib()
    local = staged(data)
    config = with_data(config, local)
    numbers = measure(config)
    page = render(pathlib.Path(data).resolve().name, read_manifest(local), config, numbers, local / "spiece.model")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def require_matplotlib() -> None:
    """Raises UserError where matplotlib is missing: now, and not when everything is counted."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as e:
        raise UserError(f"the report's plots need matplotlib ({e}); pip install -e '.[plots]' in the checkout.") from e
