# SPDX-License-Identifier: Apache-2.0
"""The model family and the examples of docs/ on a device that is no CPU: nothing is read that has to be fetched."""

import json
import pathlib

import numpy as np
import pytest

from tests import on_accelerator, pages
from tests.architectures import HEADS
from tests.runs import Runs

pytest_plugins = ["tests.runs"]


@pytest.fixture(scope="module")
def both(accelerator: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[on_accelerator.Named, ...]:
    """What every class computes on the stand-in and on the CPU."""
    out = tmp_path_factory.mktemp("family") / "found.npz"
    finished = accelerator.call("tests/on_accelerator.py", ["family", str(out)])
    assert finished.status == 0, finished.err
    return dict(np.load(out)), on_accelerator.family()


@pytest.mark.parametrize("head", HEADS)
def test_every_class_runs_under_a_transfer_guard_and_computes_what_it_does_on_a_cpu(
    head: str, both: tuple[on_accelerator.Named, ...]
) -> None:
    found, wanted = ({k: v for k, v in side.items() if k.startswith(f"{head}/")} for side in both)
    assert found.keys() == wanted.keys()
    for part in ("loss", "gradient/", "hidden_states/2", "attentions/1", "saved/"):
        assert any(name.startswith(f"{head}/{part}") for name in found), part
    for name, value in found.items():
        scale = max(1.0, np.abs(wanted[name]).max())
        np.testing.assert_allclose(value, wanted[name], atol=1e-5 * scale, err_msg=name)


def test_every_example_of_the_pages_runs_and_learns_there(accelerator: Runs, tmp_path: pathlib.Path) -> None:
    pages.make_model(tmp_path)
    out = tmp_path / "found.json"
    finished = accelerator.call("tests/on_accelerator.py", ["pages", str(tmp_path), str(out)], devices=4)
    assert finished.status == 0, finished.err
    found = json.loads(out.read_text())
    assert found.keys() == pages.PAGES.keys()
    trained = {page: results for page, results in found.items() if results["loss"] is not None}
    assert trained.keys() == set(pages.TRAINED)
    for page, results in trained.items():
        assert results["loss"] < 0.1 and results["compiled"] == 1 and results["devices"] == 4, page
