# SPDX-License-Identifier: Apache-2.0
"""The recipe by which training would read a data set, for the commands that show, describe or write its examples."""

import ast
import importlib.util
import operator
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.training.recipe import pretraining, read_overrides


def load_recipe(name: str | None, settings: Sequence[str]) -> ml_collections.ConfigDict:
    """The config of a recipe file, as `train.py --config=NAME --config.FIELD=VALUE` would have it.

    Args:
        name: a Python file with get_config(), and after a colon its variant; None takes the fields' defaults.
        settings: ``FIELD=VALUE``.

    Raises:
        UserError: there is no such file, variant or field, or a value is of another type.
    """
    config = pretraining(AlbertConfig()) if name is None else _from_file(name)
    for setting in settings:
        field, sign, text = setting.removeprefix("config.").partition("=")  # train.py has the prefix
        if not sign:
            raise UserError(f"--set {setting} has no value; give FIELD=VALUE, such as data.sequence_length=128")
        text = read_overrides([f"--config.{field}={text}"])[0].partition("=")[2]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # a word
        try:
            config.update_from_flattened_dict({field: value})
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(
                f"--set {setting} does not fit the field, which is {operator.attrgetter(field)(config)!r} here; see "
                "docs/config_fields.md"
            ) from error
    return config


def _from_file(name: str) -> ml_collections.ConfigDict:
    path, _, variant = name.partition(":")
    spec = importlib.util.spec_from_file_location("recipe", path) if Path(path).is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"--config {name}: there is no Python file {path!r}; give one such as configs/base.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config: ml_collections.ConfigDict = module.get_config(variant)
    except (AttributeError, ImportError, SyntaxError, TypeError) as error:
        raise UserError(
            f"--config {name} cannot be loaded ({type(error).__name__}: {error}); give a file with get_config(), "
            "such as configs/base.py"
        ) from error
    return config
