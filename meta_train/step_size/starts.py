"""Networks at the start of a training: new, trained on other data, or with adapters."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from harness.random import derive_seed, seeded
from meta_train.problems.situations.finetuning import add_lora
from meta_train.step_size.tasks import Task
from meta_train.step_size.trainings import Training

STEPS = 200  # of AdamW on other data
RANK, SCALE = 4, 1.0  # of LoRA


def started(training: Training, seed: int) -> nn.Module:
    """The network of a training and a seed, as the training begins."""
    model = training.build(seed)
    if training.start == "new":
        return model
    model.load_state_dict(_trained(training, seed))
    if training.start == "adapter":
        with seeded(training.seed, 5, seed):
            _adapt(model)
    return model


def first_gradients(
    training: Training, seed: int
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A started network, and the gradients of its parameters on the first batch."""
    model, task = started(training, seed), training.task
    chosen = training.indices(seed, 0)
    loss = task.loss(model(task.inputs[chosen]), task.targets[chosen])
    return model, torch.autograd.grad(loss, list(model.parameters()))


@lru_cache(2)
def _trained(training: Training, seed: int) -> dict[str, Tensor]:
    """Weights after a training on other data."""
    model = training.build(seed)
    task = other_task(training)
    opt = torch.optim.AdamW(model.parameters(), 3e-3)
    falling = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.05, STEPS)
    for step in range(STEPS):
        chosen = training.indices(seed + 100, step)
        loss = task.loss(model(task.inputs[chosen]), task.targets[chosen])
        opt.zero_grad()
        loss.backward()
        opt.step()
        falling.step()
    return model.state_dict()


def other_task(training: Training) -> Task:
    """The task of a training with a fifth of the words exchanged, or inputs mixed, and
    classes in another order."""
    task = training.task
    seed = derive_seed(training.seed, 6) % 2**62
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = task.inputs, task.targets
    is_text = not inputs.is_floating_point()
    if is_text:
        words = _exchanged(task.outputs, task.outputs // 5, generator)
        inputs, targets = words[inputs], words[targets]
    else:
        inputs = inputs + 0.4 * inputs.roll(1, -1)
        if not targets.is_floating_point():
            classes = _exchanged(task.outputs, task.outputs // 2, generator)
            targets = classes[targets]
    return task._replace(inputs=inputs, targets=targets)


def _exchanged(size: int, count: int, generator: torch.Generator) -> Tensor:
    """The numbers below `size`, of which `count` are permuted."""
    chosen = torch.randperm(size, generator=generator)[:count]
    numbers = torch.arange(size)
    numbers[chosen] = chosen.roll(1)
    return numbers


def _adapt(model: nn.Module) -> None:
    """Adds LoRA; frozen parameters become buffers, which copies do not optimize."""
    add_lora(model, RANK, SCALE)
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if not p.requires_grad:
                delattr(module, name)
                module.register_buffer(name, p.detach())
