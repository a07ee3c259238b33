"""The tests that transformers has for all of its models, on ours: `make transformers-check` puts this file among them.

They come with the source distribution of transformers, but for those of `generate` and of export, which it leaves
out.
"""

import unittest
from typing import Any

import torch

from rmat.integrations.hf import RmatConfig, RmatForCausalLM, RmatModel

from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_ff": 37,
    "segment_len": 4,
    "chunk_len": 2,
    "n_slots": 6,
    "writes_per_segment": 2,
}


class RmatModelTester:
    """What the mixin asks for inputs and sizes."""

    batch_size, seq_length, is_training = 3, 11, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> RmatConfig:
        return RmatConfig(**SIZES)

    def prepare_config_and_inputs_for_common(self) -> tuple[RmatConfig, dict[str, Any]]:
        ids = torch.randint(0, SIZES["vocab_size"], (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class RmatModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes: tuple[type, ...] = (RmatForCausalLM,)
    all_generative_model_classes = ()  # the tests of `generate` are not in the source distribution
    has_attentions = False

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = RmatModelTester(self)
        sizes = ["hidden_size", "num_attention_heads", "num_hidden_layers"]
        self.config_tester = ConfigTester(self, config_class=RmatConfig, common_properties=sizes)

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False
    ) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is RmatForCausalLM:
            inputs["labels"] = torch.zeros_like(inputs["input_ids"])
        return inputs

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class RmatBaseModelTest(RmatModelTest):
    """The model without its head, which has no loss."""

    all_model_classes = (RmatModel,)

    def setUp(self) -> None:
        super().setUp()
        if self._testMethodName.startswith("test_training"):
            self.skipTest("there is no loss without a head")
