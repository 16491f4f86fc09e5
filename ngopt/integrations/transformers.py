"""NGOptimizer in the Trainer of Hugging Face transformers."""

import inspect
from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any

from torch import Tensor, nn

from ngopt.optimizer import NGOptimizer
from ngopt.optimizer.arguments import check_names


class TrainerOptimizer(NGOptimizer):
    """NGOptimizer as the Trainer makes it; see `trainer_arguments`.

    The Trainer would take an argument `model` for parameters, so it is `traced` here.
    """

    def __init__(
        self,
        params: Iterable[Tensor | Mapping[str, Any]],
        traced: nn.Module,
        **settings: Any,
    ):
        """
        Args:
            params: Tensors or groups of the Trainer, whose weight decay is ignored.
            traced: The module with these parameters, for names and the graph.

        Raises:
            ValueError: If a parameter is not one of the module's.
        """
        trained: set[Tensor] = set()
        for entry in params:
            trained.update([entry] if isinstance(entry, Tensor) else entry["params"])
        named = [(name, p) for name, p in traced.named_parameters() if p in trained]
        if len(named) < len(trained):
            raise ValueError(
                "trainer_arguments: expected the model that the Trainer trains; "
                f"{len(trained) - len(named)} parameters of the Trainer are not in "
                f"this {type(traced).__name__}. Pass the same model to both."
            )
        if settings.get("graph") is None:
            settings["model"] = traced
        super().__init__(named, **settings)


def trainer_arguments(
    model: nn.Module, **settings: Any
) -> tuple[type[NGOptimizer], dict[str, Any]]:
    """The value of Trainer's `optimizer_cls_and_kwargs`.

    All trainable parameters form one group with the default's own weight decay. The
    Trainer alone would set the decay to that of its arguments, 0 unless given. The
    graph is traced at the first forward pass in training.

    Args:
        model: The model of the Trainer.
        settings: Other settings of NGOptimizer, such as `total_steps`.

    Raises:
        ValueError: If `model` is not a module.
        TypeError: For a setting that NGOptimizer does not have.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"trainer_arguments: expected a torch.nn.Module; got "
            f"{type(model).__name__} (model). Pass the model, not its parameters."
        )
    known = inspect.signature(NGOptimizer.__init__).parameters
    check_names(settings.keys() - known.keys())
    return TrainerOptimizer, {"traced": model, **settings}


def trainer_steps(arguments: Any, examples: int) -> int:
    """The number of optimizer steps of a Trainer, for `total_steps`.

    It is `max_steps` of the arguments if that is set. Otherwise, with the number of
    batches of one process,

        batches = ceil(examples / (per-device batch size * number of devices))
        steps = ceil(ceil(batches / gradient_accumulation_steps) * num_train_epochs)

    With `dataloader_drop_last` the number of batches is rounded down. Tensor, sequence
    and context parallelism and `split_batches` are not counted.

    Args:
        arguments: `transformers.TrainingArguments`.
        examples: In the training data set.

    Raises:
        ValueError: If there are no examples.
    """
    if arguments.max_steps > 0:
        return arguments.max_steps
    if examples < 1:
        raise ValueError(
            f"trainer_steps: expected examples of 1 or more; got {examples}"
        )
    batches = examples / (arguments.train_batch_size * arguments.world_size)
    batches = int(batches) if arguments.dataloader_drop_last else ceil(batches)
    updates = max(ceil(batches / arguments.gradient_accumulation_steps), 1)
    return ceil(updates * arguments.num_train_epochs)
