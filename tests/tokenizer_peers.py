# SPDX-License-Identifier: Apache-2.0
"""Tokenizes with the transformers of the environment that runs this: python tokenizer_peers.py DIRECTORY SLOW < JSON.

Reads a JSON list of texts and [text, pair] lists from standard input, writes one of [input_ids, token_type_ids].
SLOW is 1 for transformers 4's SentencePiece-based AlbertTokenizer and 0 for AutoTokenizer.
"""

import json
import sys

import transformers


def main() -> None:
    directory, slow = sys.argv[1], sys.argv[2] == "1"
    if slow:
        tokenizer = transformers.AlbertTokenizer.from_pretrained(directory)
        assert hasattr(tokenizer, "sp_model"), "this is not transformers 4's slow tokenizer"
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    answers = []
    for item in json.load(sys.stdin):
        encoded = tokenizer(*([item] if isinstance(item, str) else item))
        answers.append([encoded["input_ids"], encoded["token_type_ids"]])
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
