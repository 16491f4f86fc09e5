import pytest
import torch

from meta_train.problems.situations import finetuning, texts


@pytest.mark.parametrize(
    "build",
    [
        lambda name: finetuning.with_lora(name, 4),
        lambda name: finetuning.with_adapters(name, 8),
    ],
)
def test_adapted_networks_start_as_the_pretrained_one(build):
    codes = torch.arange(32)[None]
    model = build("gpt-code")
    torch.testing.assert_close(model(codes), finetuning.pretrained("gpt-code")(codes))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("up" in name or "down" in name for name in trained)


def test_thirds_have_different_texts():
    parts = [texts.code(files).splitlines() for files in texts.THIRDS]
    lines = [{x for x in part if len(x) > 60} for part in parts]
    for k in range(3):
        assert len(lines[k]) > 500
        assert len(lines[k] & lines[k - 1]) < 0.01 * len(lines[k])


def test_texts_for_fine_tuning_differ_from_those_for_pretraining():
    lower, mixed = texts.lower_case(), texts.mixed_case()
    assert lower == lower.lower()
    assert mixed != mixed.lower()
    assert "def " in texts.statements() and '"""' not in texts.statements()
    sentence = "Return the sample arithmetic mean of data."
    assert sentence in texts.docstrings() and sentence not in texts.statements()
    for text in (texts.mixed_case, texts.statements, texts.documentation):
        assert min(map(len, texts.windows(text)[1:])) >= 512
