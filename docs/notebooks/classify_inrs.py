# %% [markdown]
# # Classify INRs
#
# An implicit neural representation (INR) is a small network that maps the coordinates of a pixel to its value. This
# notebook fits one to each of some MNIST digits. Then it trains models that read only the weights of such a network and
# predict which digit it shows. [Networks as data](../networks-as-data/index.md) has the commands for larger settings.

# %%
import os
import sys

if os.path.exists("../../pyproject.toml"):  # Jupyter starts in docs/notebooks
    os.chdir("../..")
sys.path.insert(0, os.getcwd())  # the checkout: harness, meta_train, tasks

# %% tags=["parameters"]
networks = {"train": 768, "validation": 64, "test": 256}
fit_steps = 100
train_steps = 300

# %%
import time

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy

from ngopt import NGOptimizer
from tasks.inr import as_images, fit
from tasks.learning.catalogue import make_model
from tasks.networks.architectures import NetworkStack
from tasks.networks.augment import random_affine
from tasks.networks.siren import render
from tasks.shards import Networks
from tasks.sources.signals import load_signals

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Fit the networks
#
# Each digit gets a SIREN with layers of 2, 32, 32 and 1 neurons, from its own random weights. Sixteen are fitted at once.

# %%
widths = [2, 32, 32, 1]
signals = load_signals("mnist", networks, seed=0)


def fit_split(split):
    """Networks of the first images of a split: stacked parameters and labels."""
    images = signals[split]
    found, quality = [], []
    for index in torch.arange(networks[split]).split(16):
        values = images.values(index)
        params, psnr = fit(images.points, values, widths, fit_steps, lr=3e-3)
        found.append(params)
        quality.append(psnr)
    params = {name: torch.cat([p[name] for p in found]) for name in found[0]}
    labels = images.columns(torch.arange(networks[split]))["label"]
    return params, labels, torch.cat(quality)


start = time.process_time()
data = {split: fit_split(split) for split in networks}
psnr = data["train"][2].mean().item()
print(f"{time.process_time() - start:.0f} s of a core, mean PSNR {psnr:.1f} dB")

# %%
params, labels, _ = data["train"]
few = [value[:8] for value in params.values()]
drawn = as_images(render(few, signals["train"].points))
figure, axes = plt.subplots(1, 8, figsize=(8, 1.4))
for axis, image, label in zip(axes, drawn, labels, strict=False):
    axis.imshow(image[0], cmap="gray")
    axis.set_title(str(label.item()))
    axis.axis("off")
figure.suptitle("What the networks show")
plt.show()

# %% [markdown]
# ## The weights are hard to read
#
# Two networks of the same digit have unrelated weights: they were fitted from different random weights, and their hidden
# neurons have no order. Here are the 32 x 32 weights between the hidden layers of four networks.

# %%
figure, axes = plt.subplots(1, 4, figsize=(8, 2.4))
for axis, weight, label in zip(axes, params["layers.1.weight"], labels, strict=False):
    axis.imshow(weight, cmap="RdBu", vmin=-0.15, vmax=0.15)
    axis.set_title(f"digit {label.item()}")
    axis.axis("off")
plt.show()


# %% [markdown]
# ## Two models
#
# - `mlp` reads all weights as one vector. The symmetry of neurons is not built in.
# - `ng-gnn` passes messages on the neural graph, so a permutation of neurons changes nothing. It also has 32 *probes*: learned
#   inputs on which it evaluates each network (Kofinas et al. 2024, section 2.4).
#
# Networks are read in a canonical form, because a sine neuron can be negated or shifted by half a period without changing
# the function. Training images are rotated, scaled and shifted, which is a change of the first layer's weights.


# %%
def stack_of(split):
    params, labels, psnr = data[split]
    group = Networks({"kind": "siren", "widths": widths}, params, {"psnr": psnr})
    return NetworkStack.from_networks(group), labels


stack, labels = stack_of("train")
held_out, held_out_labels = stack_of("test")


def train(name, **sizes):
    """Trains a model. Returns accuracies in % on the test networks by step."""
    torch.manual_seed(0)
    model = make_model(name, [stack.architecture], 10, sizes)
    model.fit([stack.canonical()])
    optimizer = NGOptimizer(model.named_parameters(), total_steps=train_steps)
    found = {}
    for step in range(train_steps):
        index = torch.randint(len(labels), (32,))
        some = random_affine(stack.select(index), degrees=15, scale=0.1, shift=0.1)
        loss = cross_entropy(model(some.canonical()), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % max(train_steps // 10, 1) == 0:
            found[step + 1] = accuracy(model)
    return found


@torch.no_grad()
def accuracy(model):
    model.eval()
    predicted = model(held_out.canonical()).argmax(1)
    model.train()
    return 100 * (predicted == held_out_labels).double().mean().item()


start = time.process_time()
curves = {
    "mlp": train("mlp"),
    "ng-gnn, 32 probes": train("ng-gnn", probes=32, width=16, layers=2),
}
for name, curve in curves.items():
    print(f"{name:18} {list(curve.values())[-1]:.1f} % of the test networks")
print(f"{time.process_time() - start:.0f} s of a core")

# %%
figure, axes = plt.subplots(figsize=(7, 4))
for name, curve in curves.items():
    axes.plot(list(curve), list(curve.values()), marker="o", label=name)
axes.axhline(10, color="gray", linestyle=":", label="chance")
axes.set(xlabel="step", ylabel="test accuracy, %", ylim=(0, 100))
axes.set_title(f"Which digit a network shows, {networks['train']} training networks")
axes.legend()
plt.show()

# %% [markdown]
# The graph network reads digits from weights after less than a minute of training, and the MLP stays near
# chance.
# [Classify](../networks-as-data/classify.md) compares more models on 10,000 networks.
