"""Small recurrent networks, state-space models, encoders, and models of two inputs."""

from typing import Any

import torch
from torch import nn

TOKENS = torch.arange(16).expand(2, 16)


def mamba() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.MambaConfig(
        vocab_size=100,
        hidden_size=32,
        state_size=6,
        num_hidden_layers=2,
        conv_kernel=4,
        expand=2,
        time_step_rank=5,
        use_cache=False,
    )
    return transformers.MambaForCausalLM(config), TOKENS


def mamba2() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.Mamba2Config(
        vocab_size=100,
        hidden_size=48,
        state_size=10,
        num_hidden_layers=2,
        conv_kernel=4,
        expand=2,
        num_heads=12,
        head_dim=8,
        n_groups=3,
        chunk_size=8,
        use_cache=False,
    )
    return transformers.Mamba2ForCausalLM(config), TOKENS


def rwkv() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.RwkvConfig(
        vocab_size=100,
        context_length=16,
        hidden_size=32,
        num_hidden_layers=2,
        attention_hidden_size=40,
        intermediate_size=56,
        rescale_every=0,
        use_cache=False,
    )
    return transformers.RwkvForCausalLM(config), TOKENS


def recurrent_gemma() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.RecurrentGemmaConfig(
        vocab_size=100,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=3,
        lru_width=72,
        attention_window_size=16,
        block_types=("recurrent", "attention"),
        use_cache=False,
    )
    return transformers.RecurrentGemmaForCausalLM(config), TOKENS


def t5() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.T5Config(
        vocab_size=100,
        d_model=32,
        d_kv=6,
        d_ff=40,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=12,
        relative_attention_max_distance=20,
        feed_forward_proj="gated-gelu",
    )
    model = transformers.T5ForConditionalGeneration(config)
    return model, {"input_ids": TOKENS, "decoder_input_ids": TOKENS}


def bert() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=20,
    )
    return transformers.BertForMaskedLM(config), TOKENS


def clip() -> tuple[nn.Module, Any]:
    import transformers

    text = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 20,
        "bos_token_id": 0,
        "eos_token_id": 15,
    }
    vision = {
        "hidden_size": 40,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "image_size": 16,
        "patch_size": 4,
    }
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=24
    )
    inputs = {"input_ids": TOKENS, "pixel_values": torch.randn(2, 3, 16, 16)}
    return transformers.CLIPModel(config), inputs


def whisper() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.WhisperConfig(
        vocab_size=100,
        num_mel_bins=10,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=44,
        decoder_layers=2,
        decoder_attention_heads=8,
        decoder_ffn_dim=52,
        max_source_positions=20,
        max_target_positions=18,
        decoder_start_token_id=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    inputs = {"input_features": torch.randn(2, 10, 40), "decoder_input_ids": TOKENS}
    return transformers.WhisperForConditionalGeneration(config), inputs


def wav2vec2() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.Wav2Vec2Config(
        vocab_size=30,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=60,
        layerdrop=0.0,
        conv_dim=(24, 40),
        conv_stride=(4, 2),
        conv_kernel=(6, 3),
        num_conv_pos_embeddings=6,
        num_conv_pos_embedding_groups=3,
        apply_spec_augment=False,
    )
    return transformers.Wav2Vec2ForCTC(config), torch.randn(2, 134)


def deberta() -> tuple[nn.Module, Any]:
    import transformers

    config = transformers.DebertaConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=20,
        relative_attention=True,
        max_relative_positions=12,
        position_biased_input=False,
        pos_att_type=["c2p", "p2c"],
    )
    return transformers.DebertaForMaskedLM(config), TOKENS


def torch_transformer() -> tuple[nn.Module, Any]:
    layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=48, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    model = nn.Sequential(nn.Embedding(100, 32), encoder, nn.Linear(32, 10))
    return model, TOKENS


class Recurrent(nn.Module):
    """Tokens to scores of classes at each position."""

    def __init__(self, rnn: nn.LSTM | nn.GRU, features: int):
        super().__init__()
        self.embedding = nn.Embedding(100, rnn.input_size)
        self.rnn = rnn
        self.head = nn.Linear(features, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embedding(tokens))[0])


def lstm() -> tuple[nn.Module, Any]:
    rnn = nn.LSTM(24, 32, num_layers=2, batch_first=True)
    return Recurrent(rnn, 32), TOKENS


def gru() -> tuple[nn.Module, Any]:
    rnn = nn.GRU(24, 32, num_layers=2, batch_first=True, bidirectional=True)
    return Recurrent(rnn, 64), TOKENS


def lstm_projected() -> tuple[nn.Module, Any]:
    rnn = nn.LSTM(24, 32, num_layers=2, batch_first=True, proj_size=20)
    return Recurrent(rnn, 20), TOKENS
