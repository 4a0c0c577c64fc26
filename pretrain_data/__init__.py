# SPDX-License-Identifier: Apache-2.0
"""Raw text to a tokenized data set: corpora, sentences, vocabulary, shards (``python -m pretrain_data``)."""
