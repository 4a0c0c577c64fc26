# SPDX-License-Identifier: Apache-2.0
"""Tokenizes with the transformers of the environment that runs this: python tokenizer_peers.py DIRECTORY < JSON.

Reads a JSON list of texts and [text, pair] lists from standard input. Writes an object: the class of a tokenizer -> its
list of [input_ids, token_type_ids]. "auto" is AutoTokenizer, "slow" transformers 4's AlbertTokenizer.
"""

import json
import sys

import transformers


def main() -> None:
    """Asks every tokenizer that this version of transformers has."""
    directory, texts = sys.argv[1], json.load(sys.stdin)
    tokenizers = {"auto": transformers.AutoTokenizer.from_pretrained(directory)}
    if transformers.__version__.startswith("4."):
        tokenizers["slow"] = transformers.AlbertTokenizer.from_pretrained(directory)
        assert hasattr(tokenizers["slow"], "sp_model"), "this is not the tokenizer that runs SentencePiece"
    answers: dict[str, list[list[list[int]]]] = {}
    for name, tokenizer in tokenizers.items():
        encoded = (tokenizer(*([item] if isinstance(item, str) else item)) for item in texts)
        answers[name] = [[e["input_ids"], e["token_type_ids"]] for e in encoded]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
