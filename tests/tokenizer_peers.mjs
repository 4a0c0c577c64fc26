// SPDX-License-Identifier: Apache-2.0
// tokenizer_peers.py for JavaScript: node tokenizer_peers.mjs PACKAGES < JOBS > ANSWERS.
//
// PACKAGES is the directory that npm installed into. "tokenizers.js" is @huggingface/tokenizers, which transformers.js 4
// tokenizes with, "transformers.js 3" has a tokenizer of its own. A job's directory and texts are looked at, no calls.
import fs from "node:fs";
import { createRequire } from "node:module";
import readline from "node:readline";

const load = createRequire(`${process.argv[2]}/`);
const { Tokenizer } = load("@huggingface/tokenizers");
const { PreTrainedTokenizer } = load("@huggingface/transformers");

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { directory, texts } = JSON.parse(line);
  const files = ["tokenizer.json", "tokenizer_config.json"].map((name) =>
    JSON.parse(fs.readFileSync(`${directory}/${name}`, "utf8")),
  );
  const [newer, older] = [new Tokenizer(...files), new PreTrainedTokenizer(...files)];
  const both = texts.map((item) => [item].flat()).map(([text, text_pair = null]) => {
    const encoded = newer.encode(text, { text_pair, return_token_type_ids: true });
    const { input_ids, token_type_ids } = older(text, { text_pair, return_tensor: false, return_token_type_ids: true });
    return [[encoded.ids, encoded.token_type_ids], [input_ids, token_type_ids]];
  });
  const answers = {
    "tokenizers.js": { texts: both.map(([first]) => first), calls: [] },
    "transformers.js 3": { texts: both.map(([, second]) => second), calls: [] },
  };
  console.log(JSON.stringify(answers));
}
