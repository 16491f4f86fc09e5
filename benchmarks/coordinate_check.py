"""Coordinate checks of `mup_groups` on networks of transformers.

    python -m benchmarks.coordinate_check --output coordinate_check.json

Trains each network for some steps of AdamW at several widths, with one learning rate
for all parameters and with `mup_groups`. The change of a logit, root mean square over
a batch, must not depend on the width (Yang et al. 2022, section D.1): the exponent is
the slope of its logarithm over that of the width, mean over seeds. Heads keep their
size, so attention needs no other scale. Output weights begin at zero, tied tables in
proportion to 1 / width.
"""

import warnings
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW
from tqdm import tqdm

from benchmarks.records import Record, parser_of, table, write
from ngopt import mup_groups
from ngopt.roles.mup import REFERENCE_WIDTH

WIDTHS = 64, 128, 256, 512
STEPS, LR, HEAD, VOCABULARY = 5, 1e-4, 16, 97


NETWORKS = "gpt2", "llama", "falcon", "gptj", "bloom", "t5"


def network(name: str, width: int) -> nn.Module:
    """A network of two layers, with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    heads = width // HEAD
    gpt = {"n_embd": width, "n_head": heads, "n_layer": 2, "n_positions": 32}
    by_name: dict[str, dict[str, Any]] = {
        "gpt2": gpt,
        "llama": {
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
        },
        "falcon": {
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_hidden_layers": 2,
        },
        "gptj": {**gpt, "rotary_dim": 8},
        "bloom": {"hidden_size": width, "n_layer": 2, "n_head": heads},
        "t5": {
            "d_model": width,
            "d_ff": 2 * width,
            "d_kv": HEAD,
            "num_heads": heads,
            "num_layers": 2,
        },
    }
    settings = {"vocab_size": VOCABULARY, **by_name[name]}
    if name == "t5":
        config = AutoConfig.for_model(name, **settings)
        return AutoModelForSeq2SeqLM.from_config(config)
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(name, **tokens, **settings)
    return AutoModelForCausalLM.from_config(config)


def inputs_of(name: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = 8, 16
    codes = torch.randint(VOCABULARY, shape, generator=generator)
    if name != "t5":
        return {"input_ids": codes}
    targets = torch.randint(VOCABULARY, shape, generator=generator)
    return {"input_ids": codes, "decoder_input_ids": targets}


def change_of_logits(name: str, width: int, seed: int, is_mup: bool) -> float:
    """Root mean square of the changes that `STEPS` steps make."""
    torch.manual_seed(seed)
    model: Any = network(name, width).eval()  # without dropout
    if name != "t5":  # muP's initial weights; T5 scales its logits itself
        scale = REFERENCE_WIDTH / width if model.config.tie_word_embeddings else 0.0
        with torch.no_grad():
            model.get_output_embeddings().weight *= scale
    inputs = inputs_of(name, seed)
    codes = inputs.get("decoder_input_ids", inputs["input_ids"])
    groups: Any = model.parameters()
    if is_mup:
        groups = mup_groups(model, inputs, LR)
    optimizer = AdamW(groups, LR)
    first = model(**inputs).logits.detach()
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = model(**inputs).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].mT, codes[:, 1:])
        loss.backward()
        optimizer.step()
    change = model(**inputs).logits.detach() - first
    return change.square().mean().sqrt().item()


def record_of(name: str, is_mup: bool, seeds: int, bar: tqdm) -> Record:
    changes = np.zeros((seeds, len(WIDTHS)))
    for seed, (place, width) in product(range(seeds), enumerate(WIDTHS)):
        changes[seed, place] = change_of_logits(name, width, seed, is_mup)
        bar.update()
    exponents = np.polyfit(np.log(WIDTHS), np.log(changes).T, 1)[0]
    by_width = dict(zip(map(str, WIDTHS), changes.mean(0).tolist(), strict=True))
    groups = "mup_groups" if is_mup else "one rate"
    return {
        "network": name,
        "groups": groups,
        **by_width,
        "exponent": float(exponents.mean()),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    records = []
    cases = [(name, is_mup) for name in options.networks for is_mup in (False, True)]
    with tqdm(total=len(cases) * options.seeds * len(WIDTHS), unit="run") as bar:
        for name, is_mup in cases:
            records.append(record_of(name, is_mup, options.seeds, bar))
    write(options.output, coordinates=records)
    print(table(records))


if __name__ == "__main__":
    main()
