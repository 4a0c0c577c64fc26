# SPDX-License-Identifier: Apache-2.0
"""Tokenizes with the transformers of the environment that runs this: python tokenizer_peers.py < JOBS > ANSWERS.

Each line of standard input is a job: {"directory", "texts", "calls"}, where a text is a string or [text, pair] and a
call [method, arguments, keyword arguments]. The answer's line is an object: a tokenizer's name -> {"texts", "calls"}:
[input_ids, token_type_ids] of each text, and the value of each call or {"error": its class}. "auto" is AutoTokenizer,
"slow" transformers 4's AlbertTokenizer. A job's "only" names the one that is wanted.
"""

import collections.abc
import json
import sys
from typing import Any


def main() -> None:
    """Asks every tokenizer that this version of transformers has."""
    import transformers  # here because the tests use `call` without it

    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        job = json.loads(line)
        tokenizers = {"auto": transformers.AutoTokenizer.from_pretrained(job["directory"])}
        if transformers.__version__.startswith("4."):
            tokenizers["slow"] = transformers.AlbertTokenizer.from_pretrained(job["directory"])
            assert hasattr(tokenizers["slow"], "sp_model"), "this is not the tokenizer that runs SentencePiece"
        wanted = [job["only"]] if "only" in job else [*tokenizers]
        answers = {name: ask(tokenizers[name], job) for name in wanted}
        print(json.dumps(answers), flush=True)


def ask(tokenizer: Any, job: dict[str, Any]) -> dict[str, list[Any]]:
    """One tokenizer's answers."""
    encoded = (tokenizer(*([item] if isinstance(item, str) else item)) for item in job.get("texts", []))
    texts = [[e["input_ids"], e["token_type_ids"]] for e in encoded]
    return {"texts": texts, "calls": [call(tokenizer, *one) for one in job.get("calls", [])]}


def call(tokenizer: Any, method: str, arguments: list[Any], options: dict[str, Any]) -> Any:
    """The value of a call or an attribute; a batch's word and sequence ids come as further keys."""
    try:
        value = getattr(tokenizer, method)
        value = value(*arguments, **options) if callable(value) else value
    except BaseException as e:  # a panic in Rust is no Exception
        return {"error": type(e).__name__}
    if not isinstance(value, collections.abc.Mapping):
        return value
    values = {name: v.tolist() if hasattr(v, "tolist") else v for name, v in value.items()}
    for name in ("word_ids", "sequence_ids"):
        if method == "__call__" and getattr(value, "encodings", True):
            rows = len(value["input_ids"]) if isinstance(next(iter(value["input_ids"]), 0), list) else 1
            values[name] = [getattr(value, name)(row) for row in range(rows)]
    return values


if __name__ == "__main__":
    main()
