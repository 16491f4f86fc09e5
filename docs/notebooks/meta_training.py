# %% [markdown]
# # Meta-train an optimizer
#
# This notebook meta-trains the metanet `ff` of Kofinas et al. 2024: an MLP that maps the features of a parameter, such as
# its gradient and momenta, to its update. It starts from random weights and learns on one small problem: an MLP on MNIST at
# 7x7 pixels. [Meta-train your own](../meta-training.md) has the command line and larger settings.

# %%
import os
import sys

if os.path.exists("../../pyproject.toml"):  # Jupyter starts in docs/notebooks
    os.chdir("../..")
sys.path.insert(0, os.getcwd())  # the checkout: harness, meta_train, tasks

# %% tags=["parameters"]
outer_steps = 40
horizon = 200  # inner steps of a whole training

# %%
import tempfile
from statistics import fmean

import matplotlib.pyplot as plt
import torch

from meta_train.problems import load_problem
from meta_train.training.config import Config
from meta_train.training.train import MetaTrainer
from ngopt import NGOptimizer

torch.set_num_threads(1)
folder = tempfile.mkdtemp()
config = Config(
    folder=folder,
    metanet="ff",
    problems=("mlp-small-m7",),
    outer_steps=outer_steps,
    horizon=horizon,
    truncation=50,
    optimizees=4,
    lr=2e-3,
    warmup=5,
    validation_seeds=2,
)

# %% [markdown]
# An *inner* run trains an optimizee, here the MLP, with the metanet. An *outer* step does three things:
#
# 1. It unrolls 50 inner steps (`truncation`) of four optimizees.
# 2. It differentiates the mean of their losses, the meta-loss, by the weights of the metanet.
# 3. It changes these weights with AdamW.
#
# The optimizees go on from there in the next outer step. After 200 inner steps (`horizon`) they start again from new weights.

# %%
trainer = MetaTrainer(config)
start = trainer.validate()
print(f"start: validation loss {start.loss:.3f}, accuracy {100 * start.accuracy:.1f} %")

meta_losses, validations = [], {0: start.loss}
while trainer.outer_step < outer_steps:
    results = trainer.step()
    meta_losses.append(fmean(result.meta_loss for result in results))
    if trainer.outer_step % 10 == 0 or trainer.outer_step == outer_steps:
        found = trainer.validate()
        validations[trainer.outer_step] = found.loss
        print(
            f"outer step {trainer.outer_step}: validation loss {found.loss:.3f}, "
            f"accuracy {100 * found.accuracy:.1f} %"
        )

# %% [markdown]
# `validate` trains two new optimizees for the whole horizon and measures them on held-out data. The weights with the
# lowest validation loss are in `best.safetensors`.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
left.plot(range(1, len(meta_losses) + 1), meta_losses)
left.set(xlabel="outer step", ylabel="meta-loss", title="Loss of the unrolled steps")
right.plot(list(validations), list(validations.values()), marker="o")
right.set(xlabel="outer step", ylabel="validation loss", title="Whole trainings")
plt.show()

# %% [markdown]
# ## Use the weights
#
# `NGOptimizer` reads the file. The next cells train a network of a new seed with the random weights of the start, with the
# meta-trained weights, and with Adam at three learning rates.


# %%
def train(make_optimizer, seed=123):
    """The loss of every step, and the accuracy in % on validation data."""
    problem = load_problem("mlp-small-m7")
    model = problem.init(seed)
    optimizer = make_optimizer(model.parameters())
    losses = []
    for step in range(horizon):
        loss = problem.loss(model, problem.batch(seed, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses, 100 * problem.evaluate(model, "validation").accuracy


def learned(weights):
    return lambda params: NGOptimizer(params, rule=weights)


def adam(lr):
    return lambda params: torch.optim.Adam(params, lr)


untrained = MetaTrainer(config).metanet
runs = {
    "metanet, random weights": train(learned(untrained)),
    "metanet, meta-trained": train(learned(f"{folder}/best.safetensors")),
    **{f"Adam, lr {lr:g}": train(adam(lr)) for lr in (0.003, 0.01, 0.03)},
}
for name, (_, accuracy) in runs.items():
    print(f"{name:24} {accuracy:.1f} %")

# %%
figure, axes = plt.subplots(figsize=(7, 4))
for name, (losses, _) in runs.items():
    means = torch.tensor(losses).unfold(0, min(15, horizon), 1).mean(1)
    is_ours = name.startswith("metanet")
    axes.plot(means, label=name, linewidth=2.5 if is_ours else 1)
axes.set(xlabel="step", ylabel="training loss, mean of 15 steps", yscale="log")
axes.set_title("A new MLP on MNIST at 7x7 pixels")
axes.legend()
plt.show()

# %% [markdown]
# The random metanet does not train the network, and the meta-trained one does. Adam with the best of its learning rates
# is still better. These weights come from one architecture and 200 steps, and do not fit others. The
# bundled weights are from longer meta-training on several networks:
# [How they were made](../meta-training.md#how-the-bundled-weights-were-made).
