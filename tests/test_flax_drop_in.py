# SPDX-License-Identifier: Apache-2.0
"""The calls that users of transformers 4.57's Flax classes make, run on both, give the same; so do its files."""

import pathlib
import subprocess
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import albert_jax
from tests.architectures import model
from tests.flax_calls import NAMES, SHAPE, TRAINED, run
from tests.peers import transformers4

Both = tuple[dict[str, Any], dict[str, Any], pathlib.Path]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Results of transformers and of ours, and the directory of the saved models."""
    directory = tmp_path_factory.mktemp("models")
    config = albert_jax.AlbertConfig(**SHAPE)
    for name in NAMES:
        made, params = model(f"FlaxAlbert{name}", config)
        made.save_pretrained(directory / name, params)
    python = transformers4("flax")
    script = pathlib.Path(__file__).with_name("flax_calls.py")
    command = [python, str(script), str(directory), str(directory / "theirs.npz")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as theirs:
        ours = {name: np.asarray(value) for name, value in run(albert_jax, directory).items()}
        errors = theirs.communicate()[1]
    assert theirs.returncode == 0, errors[-3000:]
    return dict(np.load(directory / "theirs.npz")), ours, directory


@pytest.mark.parametrize(
    ("name", "part"),
    [(name, part) for name in NAMES for part in ("call", "make", "files")] + [(name, "train") for name in TRAINED],
)
def test_calls_give_what_they_gave(name: str, part: str, both: Both) -> None:
    theirs, ours, _ = both
    wanted = {key for key in theirs if key.startswith(f"{name}: {part}: ")}
    assert wanted and wanted == {key for key in ours if key.startswith(f"{name}: {part}: ")}
    for key in sorted(wanted):
        a, b = ours[key], theirs[key]
        assert a.shape == b.shape, key
        if b.dtype.kind != "f":
            assert np.array_equal(a, b), key
            continue
        scale = np.abs(b).max() if ": gradient" in key or ": after" in key or ": loss" in key else 1.0
        atol = 1e-5 * max(scale, 1.0)
        np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=key)


@pytest.mark.parametrize("kind", ["msgpack", "flax-safetensors", "sharded"])
@pytest.mark.parametrize("name", NAMES)
def test_files_that_its_flax_classes_wrote_load_bit_for_bit(name: str, kind: str, both: Both) -> None:
    _, _, directory = both
    cls = getattr(albert_jax, f"FlaxAlbert{name}")
    wanted = flatten_dict(cls.from_pretrained(directory / name).params)
    loaded, info = cls.from_pretrained(directory / f"{name}-{kind}", output_loading_info=True)
    got = flatten_dict(loaded.params)
    assert not any(info.values()) and got.keys() == wanted.keys()
    assert all(np.array_equal(got[path], wanted[path]) for path in wanted)
