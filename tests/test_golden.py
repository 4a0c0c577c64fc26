# SPDX-License-Identifier: Apache-2.0
"""Numbers and names that transformers' own classes show at the size of ALBERT-base; no weights are needed."""

import jax
import pytest

import albert_jax
from albert_jax.config import AlbertConfig
from albert_jax.convert.huggingface import tensor_name
from albert_jax.model import parameter_shapes

# ALBERT-base in transformers 4.57 and 5.23: tensors in model.safetensors (and in 4's Flax tree), and parameters.
BASE = {
    "FlaxAlbertModel": (25, 11_683_584),
    "FlaxAlbertForPreTraining": (32, 11_813_810),
    "FlaxAlbertForMaskedLM": (28, 11_221_680),
    "FlaxAlbertForSequenceClassification": (27, 11_685_122),
    "FlaxAlbertForMultipleChoice": (27, 11_684_353),
    "FlaxAlbertForTokenClassification": (25, 11_094_530),
    "FlaxAlbertForQuestionAnswering": (25, 11_094_530),
}
LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
# AlbertForPreTraining's file, base: name -> shape as torch has it.
PRETRAINING = {
    "albert.embeddings.word_embeddings.weight": (30000, 128),
    "albert.embeddings.position_embeddings.weight": (512, 128),
    "albert.embeddings.token_type_embeddings.weight": (2, 128),
    "albert.embeddings.LayerNorm.weight": (128,),
    "albert.embeddings.LayerNorm.bias": (128,),
    "albert.encoder.embedding_hidden_mapping_in.weight": (768, 128),
    "albert.encoder.embedding_hidden_mapping_in.bias": (768,),
    **{f"{LAYER}.attention.{name}.weight": (768, 768) for name in ("query", "key", "value", "dense")},
    **{f"{LAYER}.attention.{name}.bias": (768,) for name in ("query", "key", "value", "dense")},
    f"{LAYER}.attention.LayerNorm.weight": (768,),
    f"{LAYER}.attention.LayerNorm.bias": (768,),
    f"{LAYER}.ffn.weight": (3072, 768),
    f"{LAYER}.ffn.bias": (3072,),
    f"{LAYER}.ffn_output.weight": (768, 3072),
    f"{LAYER}.ffn_output.bias": (768,),
    f"{LAYER}.full_layer_layer_norm.weight": (768,),
    f"{LAYER}.full_layer_layer_norm.bias": (768,),
    "albert.pooler.weight": (768, 768),
    "albert.pooler.bias": (768,),
    "predictions.dense.weight": (128, 768),
    "predictions.dense.bias": (128,),
    "predictions.LayerNorm.weight": (128,),
    "predictions.LayerNorm.bias": (128,),
    "predictions.bias": (30000,),
    "sop_classifier.classifier.weight": (2, 768),
    "sop_classifier.classifier.bias": (2,),
}


@pytest.mark.parametrize("head", BASE)
def test_base_has_as_many_tensors_and_parameters_under_every_head_as_transformers_says(head: str) -> None:
    network = getattr(albert_jax, head)(AlbertConfig.published("base"), _do_init=False)
    leaves = jax.tree.leaves(network.params_shape_tree)
    assert (len(leaves), sum(leaf.size for leaf in leaves)) == BASE[head]


def test_the_pretraining_models_tensors_have_transformers_names_and_shapes() -> None:
    network = albert_jax.FlaxAlbertForPreTraining(AlbertConfig.published("base"), _do_init=False)
    shapes = parameter_shapes(network.module)
    assert {tensor_name(p): s[::-1] if p.endswith("kernel") else s for p, s in shapes.items()} == PRETRAINING
