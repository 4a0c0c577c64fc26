# SPDX-License-Identifier: Apache-2.0
"""Promises of configs/*.py."""

import importlib.util
import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from albert_jax.config import AlbertConfig
from albert_jax.errors import UserError
from albert_jax.training import costs
from albert_jax.training.recipe import pretraining, read_overrides

DIRECTORY = pathlib.Path(__file__).parent.parent / "configs"
LONG = {
    "base": ("10m", 10_000_000),
    "large": ("3m", 3_000_000),
    "xlarge": ("3m", 3_000_000),
    "xxlarge": ("3m", 3_000_000),
}
SIZES = tuple(LONG)
# Trainable numbers with both heads, in millions (the docstrings round to one decimal).
PARAMETERS = {"base": 11_813_810, "large": 17_847_474, "xlarge": 59_021_490, "xxlarge": 223_158_450}


def load(size: str):
    """The module, loaded by its path as `--config=configs/base.py` does."""
    spec = importlib.util.spec_from_file_location(f"recipe_{size}", DIRECTORY / f"{size}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flat(config, prefix: str = "") -> dict:
    values: dict = {}
    for name, value in config.items():
        values |= flat(value, f"{prefix}{name}.") if hasattr(value, "items") else {prefix + name: value}
    return values


@pytest.mark.parametrize("size", SIZES)
def test_a_recipe_has_exactly_the_fields_of_the_shared_defaults(size):
    config = load(size).get_config()
    assert flat(config).keys() == flat(pretraining(AlbertConfig.published(size))).keys()
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.optimizer.learning_rat = 0.1


@pytest.mark.parametrize("size", SIZES)
def test_the_default_is_version_2_at_version_1s_length(size):
    config = load(size).get_config()
    assert config.model.to_dict() == AlbertConfig.published(size, 2).to_dict()
    assert (config.steps, config.batch.size, config.batch.unit) == (125_000, 4096, "examples")
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.warmup_steps) == (
        "lamb",
        0.00176,
        3125,
    )
    assert (config.masking.rate, config.masking.max_ngram, config.optimizer.clip_norm) == (0.15, 3, 1.0)
    assert config.dtype == "bfloat16"
    assert flat(load(size).get_config("v2")) == flat(config)


@pytest.mark.parametrize("size", SIZES)
def test_v1_differs_by_dropout_alone_and_xxlarge_not_at_all(size):
    v1, v2 = flat(load(size).get_config("v1")), flat(load(size).get_config())
    changed = {name: v1[name] for name in v2 if v1[name] != v2[name]}
    dropout = {"model.hidden_dropout_prob": 0.1, "model.attention_probs_dropout_prob": 0.1}
    assert changed == ({} if size == "xxlarge" else dropout)


@pytest.mark.parametrize("size", SIZES)
def test_the_long_variant_trains_as_long_as_version_2_and_prints_its_cost(size, capsys):
    name, steps = LONG[size]
    assert load(size).get_config(f"v1,{name}").steps == steps
    capsys.readouterr()
    config = load(size).get_config(name)
    assert config.steps == steps
    assert capsys.readouterr().err == f"note: the variant {name} means {costs.cost(config)}\n"
    load(size).get_config()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("size", SIZES)
def test_an_unknown_variant_is_refused_with_the_list(size):
    for variant in ("v3", "v1,v9", "v1,"):
        with pytest.raises(UserError, match=f"there are v2, v1, {LONG[size][0]}"):
            load(size).get_config(variant)
    with pytest.raises(UserError, match="names both v1 and v2"):
        load(size).get_config("v1,v2")


# 125,000 x 4,096 rows of 512: 2 FLOPs a multiply-add, 3 x the forward pass; and peaks of bfloat16, from data sheets.
FLOPS = {"base": 1.50e20, "large": 5.16e20, "xlarge": 1.98e21, "xxlarge": 3.88e21}
PEAKS = {"v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}
REMEDY = "python scripts/compile_for_tpu.py --table writes the table of docs/scaling.md, costs.py and the recipes"


def expected_by_the_compiler() -> dict[str, dict[str, float]]:
    """The last column of the page's table, the lower share where there are two slices of a chip."""
    found: dict[str, dict[str, float]] = {}
    for line in (DIRECTORY.parent / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 13 and cells[0] in SIZES:
            of_size, chip = found.setdefault(cells[0], {}), cells[1].split("-")[0]
            of_size[chip] = min(of_size.get(chip, 1.0), int(cells[-1].removesuffix("%")) / 100)
    return found


def test_utilizations_are_those_of_the_pages_table():
    assert expected_by_the_compiler() == costs.UTILIZATION, REMEDY


@pytest.mark.parametrize("size", SIZES)
def test_the_docstring_states_the_cost_that_the_pages_table_gives(size):
    module = load(size)
    printed = costs.cost(module.get_config())
    assert f"Cost:   {printed}\n" in module.__doc__, REMEDY
    assert printed.startswith(f"125,000 steps of 4,096 rows: {FLOPS[size]:.2e} FLOPs; chip-hours: ")
    hours = dict(part.split()[::-1] for part in printed.split("chip-hours: ")[1].split(", "))
    assert hours.keys() == PEAKS.keys()  # no GPU: nothing is known of them
    for chip, share in expected_by_the_compiler()[size].items():
        wanted = FLOPS[size] / (share * PEAKS[chip]) / 3600
        assert float(hours[chip].replace(",", "")) == pytest.approx(wanted, rel=0.06)  # it has two digits
    assert f"{PARAMETERS[size] / 1e6:.1f} M parameters" in module.__doc__
    assert f"python train.py --config=configs/{size}.py " in module.__doc__


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"data.sequence_length": 128},
        {"model.num_hidden_layers": 6},
        {"model.num_hidden_groups": 12},
    ],
)
def test_no_cost_is_guessed_for_what_the_table_does_not_hold(change):
    config = load("base").get_config()
    config.update_from_flattened_dict(change)
    assert costs.cost(config).endswith("; chip-hours: no estimate")
    assert costs.cost(load("base").get_config("v1")).endswith("; chip-hours: no estimate")  # dropout takes time too


def test_recipes_load_through_the_config_flag_with_overrides(monkeypatch):
    command = ["train.py", f"--config={DIRECTORY}/large.py:v1", "--config.batch.rows_per_device=4"]
    monkeypatch.setattr(sys, "argv", command)  # where ml_collections looks for overrides
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(command)
    assert values.config.batch.rows_per_device == 4
    assert values.config.model.hidden_dropout_prob == 0.1
    assert values.config.model.num_hidden_layers == 24


@pytest.mark.parametrize("text", ["1000", "1_000", "1e3", "+1000", "1000.0"])
def test_a_whole_number_may_be_written_as_people_write_it(text):
    assert read_overrides([f"--config.steps={text}", "--config.optimizer.eps=1e-3", "more"]) == [
        "--config.steps=1000",
        "--config.optimizer.eps=1e-3",
        "more",
    ]


@pytest.mark.parametrize("text", ["2.5", "1e-3", "many", "", "nan", "inf", "1e30", "True"])
def test_any_other_number_is_refused_with_a_form_that_is_taken(text):
    with pytest.raises(UserError) as refused:
        read_overrides([f"--config.batch.size={text}"])
    assert str(refused.value) == f"--config.batch.size={text} is not a whole number; give one like 1000, 1_000 or 1e3."


def test_every_recipe_in_the_directory_starts_from_the_shared_defaults():
    shared = flat(pretraining(AlbertConfig.published("base"))).keys()
    for path in sorted(DIRECTORY.glob("[!_]*.py")):
        assert flat(load(path.stem).get_config()).keys() == shared, path.name
