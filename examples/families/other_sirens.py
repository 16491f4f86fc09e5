"""The rule of `sirens.safetensors` where it was not learned: on MNIST, in longer runs
and on wider networks.

python -m examples.families.other_sirens
"""

import argparse
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

from examples.families import sirens
from harness.image_datasets import load_dataset
from harness.tables import text_table
from meta_train.specialize.family import Family, Member, log_losses, train
from meta_train.specialize.hand_rules import KINDS, rules_of_search, tuned
from meta_train.specialize.report import Level, measure, rows_of
from meta_train.specialize.run import SEARCH_MEMBERS, TEST_SEEDS
from ngopt.pretrained import load_pretrained
from ngopt.soap.soap import Soap
from ngopt.specialized.first_order import FirstOrder
from ngopt.specialized.storage import HandRule, rates_of, with_rates

HORIZONS = 50, 100


def digits(seed: int) -> tuple:
    """A SIREN and an image of MNIST."""
    images = load_dataset("mnist").train.images
    image = images[seed % len(images)].float().reshape(-1, 1) / 255
    return sirens.siren(), [image], sirens.loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).with_name("sirens.safetensors")
    parser.add_argument("--rule", type=Path, default=default)
    rule = load_pretrained(parser.parse_args().rule)
    rates = rates_of(rule)
    assert isinstance(rule, Soap | FirstOrder) and rates is not None
    family = Family("MNIST", digits)

    def loss(hand_rule: HandRule) -> float:
        bar.update()
        seeds = range(SEARCH_MEMBERS[1])
        means = [log_losses(family, seeds, hand_rule, x) for x in HORIZONS]
        return float(torch.stack(means).mean())

    with tqdm(total=rules_of_search(), desc="search on MNIST") as bar:
        best = {kind: tuned(kind, loss) for kind in KINDS}
    levels = [Level(f"{kind}, tuned on MNIST", x.rule) for kind, x in best.items()]
    base = Level("base rule of the file", with_rates(rule, None))
    levels += [base, Level("the file", base.rule, rates.copied)]
    losses = measure(levels, family, TEST_SEEDS, HORIZONS)
    lowest = min(best, key=lambda kind: best[kind].loss)
    print(text_table(rows_of(losses, f"{lowest}, tuned on MNIST")))
    for name, steps, width in (("200 steps", 200, 32), ("width 64", 100, 64)):
        image = sirens.member(0)[1]
        member = Member(sirens.siren(width), image, sirens.loss)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            equal = train(member, rule, steps).equal(train(member, base.rule, steps))
        print(f"{name}: equal to the base rule: {equal}. {caught[0].message}")


if __name__ == "__main__":
    main()
