import pytest
import torch
import torch.nn.functional as F

from tasks.networks.vit import ViT


def test_a_block_is_torchs_pre_norm_encoder_layer():
    torch.manual_seed(0)
    model = ViT(3, width=8, depth=1, heads=2, patch=8, activation="gelu").double()
    (block,) = model.blocks
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 16, 0.0, F.gelu, batch_first=True, norm_first=True
    ).double()
    projections = block.q, block.k, block.v
    parts = {
        "self_attn.out_proj": block.out,
        "linear1": block.up,
        "linear2": block.down,
        "norm1": block.norm1,
        "norm2": block.norm2,
    }
    state = {}
    for kind in ("weight", "bias"):
        joined = torch.cat([getattr(part, kind) for part in projections])
        state[f"self_attn.in_proj_{kind}"] = joined
        state |= {f"{name}.{kind}": getattr(part, kind) for name, part in parts.items()}
    layer.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)  # (2, 3, 16, 8, 8)
    weight, bias = model.patch.weight.flatten(1), model.patch.bias
    tokens = patches.transpose(1, 2).flatten(2) @ weight.T + bias
    encoded = model.norm(layer(tokens + model.places))
    torch.testing.assert_close(model(images), model.fc(encoded.mean(1)))


def test_heads_divide_the_width():
    message = "width: expected a multiple of 3 heads; got 8"
    with pytest.raises(ValueError, match=message):
        ViT(3, width=8, depth=1, heads=3, patch=8)
