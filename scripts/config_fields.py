#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/config_fields.md, the page of all fields of a config, from the comments beside them in the code.

python scripts/config_fields.py
"""

import argparse
import inspect
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from albert_jax.config import AlbertConfig  # noqa: E402
from albert_jax.training.recipe import RESUMABLE_FIELDS, pretraining  # noqa: E402

PAGE = ROOT / "docs" / "config_fields.md"
_HEAD = """\
# Fields of a config

Every field can be set on the command line, as `--config.batch.size=256`; whole numbers may be written `1000`, `1_000`
or `1e3`. The defaults below are those that `configs/*.py` start from; a recipe may have others. A field with a `*` may
have another value when a run is resumed, all others belong to the run. `python train.py --config=... --check=fields`
says whether the values can be.

`python scripts/config_fields.py` makes this page of the comments in albert_jax/training/recipe.py and
albert_jax/config.py.
"""


def comments(function: object, pattern: str) -> dict[str, str]:
    """The comment of each field: behind its line, or above it.

    Args:
      function: whose source says them.
      pattern: of a line that sets a field; its group is the field's name.
    """
    found, above = {}, ""
    for line in inspect.getsource(function).splitlines():  # type: ignore[arg-type]
        if line.strip().startswith("# "):
            above = f"{above} {line.strip()[2:]}".strip()
            continue
        if match := re.match(pattern, line):
            _, _, behind = line.rpartition("  # ")
            found[match[1]] = behind if "  # " in line else above
        above = ""
    return found


def page() -> str:
    """The page's text.

    Raises:
      KeyError: where a field has no comment.
    """
    config = pretraining(AlbertConfig())
    told = comments(pretraining, r"    c\.([\w.]+) = ")
    told |= {f"model.{n}": text for n, text in comments(AlbertConfig, r"    (\w+): [\w |]+ = ").items()}
    tables: dict[str, list[str]] = {"": []}
    for name, value in config.to_dict().items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        rows = tables.setdefault(name if isinstance(value, dict) else "", [])
        for field, default in inner:
            full = f"{name}.{field}" if field else name
            if not told[full]:
                raise KeyError(full)
            star = " *" if full in RESUMABLE_FIELDS else ""
            rows.append(f"| `{full}`{star} | {_shown(default)} | {told[full].replace('|', chr(92) + '|')} |")
    tables["model"] = tables.pop("model")  # the last: a recipe names a published size
    sections = [_HEAD]
    for name, rows in tables.items():
        heading = f"## {name}\n\n" if name else ""
        sections.append(heading + "| field | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(sections)


def _shown(value: object) -> str:
    return f"`{value!r}`" if value != "" else ""


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
