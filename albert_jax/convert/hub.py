# SPDX-License-Identifier: Apache-2.0
"""Where a model named by a user lies: a directory of his, or a repository of Hugging Face's hub that he names."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import huggingface_hub

from albert_jax.errors import UserError

_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
MODEL_FILES = ("*.json", "*.safetensors", "*.msgpack", "pytorch_model*.bin")
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json")


def locate(name: str | os.PathLike[str], files: Sequence[str], **options: Any) -> pathlib.Path:
    """The directory of a model or tokenizer.

    Args:
      name: a directory, or a repository like "albert/albert-base-v2", which is downloaded or found in the hub's cache.
      files: patterns of what is wanted of a repository.
      options: of `huggingface_hub.snapshot_download`, those in `HUB_OPTIONS`.

    Raises:
      UserError: where it is neither, or cannot be downloaded.
    """
    directory = pathlib.Path(name)
    if directory.is_dir():
        return directory
    if not _REPOSITORY.fullmatch(str(name)):
        raise UserError(f"{name} is not a directory; give one that holds a model, or a repository like org/name.")
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(str(name), allow_patterns=list(files), **options))
    except (
        OSError,
        ValueError,
        huggingface_hub.errors.HfHubHTTPError,
        huggingface_hub.errors.OfflineModeIsEnabled,
    ) as e:
        reason = str(e).strip().split("\n")[0]
        raise UserError(
            f"{name} is not a directory here, and the hub's repository of that name cannot be had ({reason}); give a "
            "directory that holds a model."
        ) from e
