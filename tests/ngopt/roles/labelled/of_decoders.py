"""Small language models with published code."""

from typing import Any

import torch
from torch import nn

TOKENS = torch.arange(16).expand(2, 16)

# unlike sizes, with 3 groups of 4 heads
GROUPED = {
    "vocab_size": 100,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 3,
    "head_dim": 6,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "use_cache": False,
}


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


def gpt2() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=100,
        n_positions=20,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=48,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return transformers.GPT2LMHeadModel(config), TOKENS


def bloom() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.BloomConfig(
        vocab_size=100, hidden_size=40, n_layer=2, n_head=5, use_cache=False
    )
    return transformers.BloomForCausalLM(config), TOKENS


def falcon_multi_query() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.FalconConfig(
        vocab_size=100,
        hidden_size=40,
        num_hidden_layers=2,
        num_attention_heads=5,
        ffn_hidden_size=72,
        multi_query=True,
        use_cache=False,
    )
    return transformers.FalconForCausalLM(config), TOKENS


def falcon_grouped() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.FalconConfig(
        vocab_size=100,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_kv_heads=3,
        ffn_hidden_size=64,
        new_decoder_architecture=True,
        use_cache=False,
    )
    return transformers.FalconForCausalLM(config), TOKENS


def llama() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.LlamaConfig(intermediate_size=56, **GROUPED)
    return transformers.LlamaForCausalLM(config), TOKENS


def qwen3() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.Qwen3Config(intermediate_size=56, **GROUPED)
    return transformers.Qwen3ForCausalLM(config), TOKENS


def qwen3_moe() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.Qwen3MoeConfig(
        moe_intermediate_size=20, num_experts=5, num_experts_per_tok=2, **GROUPED
    )
    return transformers.Qwen3MoeForCausalLM(config), TOKENS


def qwen3_next() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.Qwen3NextConfig(
        linear_conv_kernel_dim=4,
        linear_num_key_heads=3,
        linear_num_value_heads=12,
        linear_key_head_dim=10,
        linear_value_head_dim=5,
        moe_intermediate_size=20,
        shared_expert_intermediate_size=22,
        num_experts=5,
        num_experts_per_tok=2,
        layer_types=["linear_attention", "full_attention"],
        **GROUPED | {"head_dim": 8},
    )
    return transformers.Qwen3NextForCausalLM(config), TOKENS


def gemma3() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.Gemma3TextConfig(
        intermediate_size=56,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        **GROUPED,
    )
    return transformers.Gemma3ForCausalLM(config), TOKENS


def deepseek_v3() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.DeepseekV3Config(
        vocab_size=100,
        hidden_size=40,
        intermediate_size=56,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=3,
        n_routed_experts=6,
        n_group=3,
        topk_group=2,
        num_experts_per_tok=3,
        q_lora_rank=20,
        kv_lora_rank=12,
        qk_nope_head_dim=10,
        qk_rope_head_dim=6,
        v_head_dim=14,
        max_position_embeddings=20,
        use_cache=False,
    )
    return transformers.DeepseekV3ForCausalLM(config), TOKENS


def mixtral() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.MixtralConfig(
        intermediate_size=28, num_local_experts=5, num_experts_per_tok=2, **GROUPED
    )
    return transformers.MixtralForCausalLM(config), TOKENS


def phi3() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.Phi3Config(
        vocab_size=100,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=20,
        original_max_position_embeddings=20,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return transformers.Phi3ForCausalLM(config), TOKENS


def gpt_oss() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.GptOssConfig(
        intermediate_size=28,
        num_local_experts=5,
        num_experts_per_tok=2,
        sliding_window=8,
        **GROUPED | {"max_position_embeddings": 131072},
    )
    return transformers.GptOssForCausalLM(config), TOKENS


def olmo2() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.Olmo2Config(intermediate_size=56, **GROUPED)
    return transformers.Olmo2ForCausalLM(config), TOKENS
