# %% [markdown]
# # Train with NGOptimizer
#
# This notebook trains a small CNN on FashionMNIST with AdamW at four learning rates, and with `NGOptimizer`, which has
# none to choose. It ends with what to do when the number of steps is not known.

# %%
import os
import sys

if os.path.exists("../../pyproject.toml"):  # Jupyter starts in docs/notebooks
    os.chdir("../..")
sys.path.insert(0, os.getcwd())  # the checkout: harness, meta_train, tasks

# %% tags=["parameters"]
steps = 300
batch_size = 128

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

from harness.image_datasets import batch_indices, load_dataset
from ngopt import NGOptimizer

torch.set_num_threads(1)
data = load_dataset("fashion-mnist")
print(len(data.train), "training images,", len(data.validation), "validation images")

# %% [markdown]
# ## The network and the loop
#
# All runs start from the same weights and get the same batches.


# %%
def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 6 * 6, 10),
    )


def train(model, optimizer, schedule=None):
    """Returns the loss of every step."""
    losses = []
    for step in range(steps):
        index = batch_indices(len(data.train), batch_size, seed=0, step=step)
        images, labels = data.train.batch(index)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(model):
    """In %, on the validation images."""
    model.eval()
    images, labels = data.validation.batch(torch.arange(len(data.validation)))
    correct = model(images).argmax(1) == labels
    model.train()
    return 100 * correct.double().mean().item()


# %% [markdown]
# ## AdamW at four learning rates
#
# Each learning rate has a cosine schedule.

# %%
curves, scores = {}, {}
for lr in (1e-3, 3e-3, 1e-2, 3e-2):
    model = make_model()
    adamw = torch.optim.AdamW(model.parameters(), lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, steps)
    name = f"AdamW, lr {lr:g}"
    curves[name] = train(model, adamw, cosine)
    scores[name] = accuracy(model)

# %% [markdown]
# ## NGOptimizer
#
# The only setting is `total_steps`, the number of calls of `step()`. The schedule is built in.

# %%
model = make_model()
opt = NGOptimizer(model.named_parameters(), total_steps=steps)
print(opt)

# %% [markdown]
# `print(opt)` shows the settings of each parameter group and one line about the graph:
#
# - `lr` has no unit, so there is none to tune.
# - `weight_decay` is in AdamW's units.
# - `weights` names the rule. The default is SOAP with one setting; nothing in it is learned.
# - The last line counts the parameters that are connected in the neural graph. Parameters that are not connected are
#   named. They are still optimized.

# %%
curves["NGOptimizer"] = train(model, opt)
scores["NGOptimizer"] = accuracy(model)

for name, score in scores.items():
    print(f"{name:16}  {score:.1f} % of the validation images")


# %%
def smooth(losses, width=20):
    """Running mean."""
    values = torch.tensor(losses).unfold(0, min(width, len(losses)), 1)
    return values.mean(1)


figure, axes = plt.subplots(figsize=(7, 4))
for name, losses in curves.items():
    is_ours = name == "NGOptimizer"
    color = "black" if is_ours else None
    width = 2.5 if is_ours else 1
    axes.plot(smooth(losses), label=name, color=color, linewidth=width)
axes.set(xlabel="step", ylabel="training loss, mean of 20 steps", yscale="log")
axes.set_title("A CNN on FashionMNIST")
axes.legend()
plt.show()

# %% [markdown]
# AdamW depends on its learning rate, and the best one depends on the network and on the number of steps. `NGOptimizer` has
# one setting for all networks. [Results](../results/index.md) compares it with tuned optimizers.
#
# ## If the number of steps is not known
#
# Without `total_steps` the step size never decays to zero, so evaluate the running average of the weights. Inside
# `opt.averaged()` the parameters are that average. The average has no statistics of BatchNorm; `update_bn` computes them. It
# overwrites the buffers, and the run ends here. [Plain torch](../recipes/torch.md) shows how to restore them.

# %%
model = make_model()
opt = NGOptimizer(model.named_parameters())
train(model, opt)
print(f"last weights:     {accuracy(model):.1f} %")

batches = []
for step in range(20):
    index = batch_indices(len(data.train), batch_size, seed=1, step=step)
    batches.append(data.train.batch(index)[0])

with opt.averaged():
    torch.optim.swa_utils.update_bn(batches, model)
    print(f"averaged weights: {accuracy(model):.1f} %")

# %% [markdown]
# `opt.load_average()` replaces the weights by the average at the end of a run.
#
# Next: [recipes](../recipes/index.md) for Trainer, Accelerate, Lightning, timm and FSDP2.
