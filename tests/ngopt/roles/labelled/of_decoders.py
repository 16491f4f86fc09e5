"""Small language models with published code."""

from typing import Any

import torch
from torch import nn

TOKENS = torch.arange(16).expand(2, 16)


def gpt_neox() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.GPTNeoXConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    return transformers.GPTNeoXForCausalLM(config), TOKENS
