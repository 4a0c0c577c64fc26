# SPDX-License-Identifier: Apache-2.0
"""What transformers' torch classes and pipelines make of saved models: python torch_peers.py DIRECTORY < JSON.

DIRECTORY holds a saved model and tokenizer for each class, DIRECTORY/AlbertFor.... Standard input is an object:
`inputs`, class -> arguments as nested lists, and `text`, for the pipelines. Writes an object: `missing`, class -> keys
that were not found or not expected; `outputs`, class -> output name -> nested lists; `pipelines`, task -> its answer.
"""

import json
import pathlib
import sys
from typing import Any

import torch
import transformers

TASKS = {
    "fill-mask": "AlbertForMaskedLM",
    "text-classification": "AlbertForSequenceClassification",
    "token-classification": "AlbertForTokenClassification",
    "feature-extraction": "AlbertModel",
}


def ask_classes(directory: pathlib.Path, inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each class misses in its files, and its outputs."""
    missing, outputs = {}, {}
    for name, arguments in inputs.items():
        cls = getattr(transformers, name)
        model, info = cls.from_pretrained(directory / name, output_loading_info=True)
        missing[name] = [str(key) for key in (*info["missing_keys"], *info["unexpected_keys"])]
        with torch.no_grad():
            out = model.eval()(**{key: torch.tensor(value) for key, value in arguments.items()})
        outputs[name] = {key: value.tolist() for key, value in out.items()}
    return missing, outputs


def main() -> None:
    """Asks the classes, then the pipelines."""
    transformers.logging.set_verbosity_error()
    directory, asked = pathlib.Path(sys.argv[1]), json.load(sys.stdin)
    missing, outputs = ask_classes(directory, asked["inputs"])
    pipelines = {}
    for task, name in TASKS.items():
        pipe: Any = transformers.pipeline(task, model=str(directory / name))  # type: ignore[call-overload]
        pipelines[task] = pipe(asked["text"])
    json.dump({"missing": missing, "outputs": outputs, "pipelines": pipelines}, sys.stdout, default=float)


if __name__ == "__main__":
    main()
