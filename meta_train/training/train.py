"""Meta-trains an optimizer:
`python -m meta_train.training.train --metanet ff --folder runs/ff`.

Writes into its folder: `config.json`, `checkpoint.pt` (from which the same command
resumes, bit for bit), `log.jsonl` (one line a validation), TensorBoard events, and
`best.safetensors`, the weights with the lowest validation loss.

With `--processes N`, or started as
`torchrun --nproc-per-node N -m meta_train.training.train ...`, each process unrolls a
share of the optimizees; the number of processes changes no result, and any number
resumes.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map_only
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from harness import cli
from harness.checkpoint import Checkpoint, ResumableTrainer, checkpoint_message
from harness.distributed import RankLost, Ranks, device_of, process_group, run_on_ranks
from harness.errors import Interrupted, uninterrupted
from harness.files import read_checkpoint
from harness.random import derive_seed
from harness.settings import named_settings
from meta_train.problems import Metrics, mean_metrics
from meta_train.training.config import Config, learning_rate_factor
from meta_train.training.rules import as_weights
from meta_train.training.unroll import Optimizee, unroll, whole_run
from meta_train.training.weights import make_learned, with_stage
from meta_train.training.worker import (
    OptimizeeProgress,
    Result,
    Worker,
    first_optimizees,
)
from ngopt.pretrained import save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

# Settings that change no number.
IRRELEVANT = ("folder", "processes")
UPDATE_STEP = 100  # inner steps before the updates that are logged


class MetaTrainer(ResumableTrainer):
    """The outer loop: unrolls optimizees, averages their meta-gradients, steps AdamW,
    validates, saves.

    Every rank takes the same outer steps, and gets the `Result` of all. It keeps
    the states of the optimizees that it owns.
    """

    step_name = "outer step"

    def __init__(self, config: Config, ranks: Ranks = Ranks()):  # noqa: B008
        self.config, self.folder = config, Path(config.folder)
        may_change = ("outer_steps", *IRRELEVANT)
        settings = named_settings(config)
        super().__init__(Checkpoint(self.folder, settings, may_change, True), ranks)
        self.learned = make_learned(
            config.metanet, config.init_from, config.metanet_config, config.seed
        )
        self.device = device_of(config.device)
        self.metanet = self.learned.metanet.to(self.device)
        decayed = get_ema_multi_avg_fn(config.average)
        self.mean = AveragedModel(self.metanet, multi_avg_fn=decayed)
        self.mean.update_parameters(self.metanet)  # the first is a copy
        self.averaged = replace(self.learned, metanet=self.mean.module)
        self.worker = Worker(config, self.learned, self.device)
        self.optimizer = torch.optim.AdamW(
            self.metanet.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.optimizees = first_optimizees(config)
        self.outer_step, self.best = 0, float("inf")
        self.log: list[dict[str, Any]] = []  # one record a validation

    @property
    def steps_done(self) -> int:
        return self.outer_step

    def train(self, writer: SummaryWriter | None) -> None:
        if writer:
            settings = json.dumps(named_settings(self.config), indent=2)
            (self.folder / "config.json").write_text(settings)
            made_for = self.checkpoint.changed.get("outer_steps")
            for line in advice(self.config, self.outer_step, made_for):
                tqdm.write(line)
        start = time.perf_counter()
        with tqdm(
            total=max(self.config.outer_steps, self.outer_step),
            initial=self.outer_step,
            unit=" outer steps",
            smoothing=0.05,
            disable=writer is None,
        ) as bar:
            while True:
                if self._is_validation_step():
                    bar.set_description("validating")
                    metrics = self.validate()
                    bar.set_description(None)
                    self.save_checkpoint()
                    if writer:
                        self._log_validation(writer, metrics)
                        seconds = time.perf_counter() - start
                        tqdm.write(
                            f"{summary(self.outer_step, metrics)}, {seconds:.0f} s"
                        )
                elif self.outer_step < self.config.outer_steps:
                    self._step_and_log(bar, writer)
                else:
                    break

    def _step_and_log(self, bar: tqdm, writer: SummaryWriter | None) -> None:
        results = self.step()
        meta_loss = fmean(result.meta_loss for result in results)
        norm = fmean(result.norm for result in results)
        bar.set_postfix(meta_loss=f"{meta_loss:.3f}", norm=f"{norm:.2g}")
        bar.update()
        if writer:
            writer.add_scalar("meta_loss", meta_loss, self.outer_step)
            writer.add_scalar("meta_gradient_norm", norm, self.outer_step)

    def _is_validation_step(self) -> bool:
        step, config = self.outer_step, self.config
        last = self.log[-1]["outer_step"] if self.log else 0
        is_time = step % config.validate_every == 0 or step == config.outer_steps
        return is_time and step > last

    @torch.no_grad()
    def _log_validation(self, writer: SummaryWriter, metrics: Metrics) -> None:
        writer.add_scalar("validation/loss", metrics.loss, self.outer_step)
        if metrics.accuracy is not None:
            writer.add_scalar("validation/accuracy", metrics.accuracy, self.outer_step)
        for name, p in self.metanet.named_parameters():
            if p.grad is not None:
                tag = f"meta_gradient/{name}"
                writer.add_scalar(tag, p.grad.norm(), self.outer_step)
        # norm of the update / norm of the parameter
        optimizee = self._validation_optimizee(0)
        rule = self.averaged.bind(optimizee.graph)
        steps = min(UPDATE_STEP, self.config.horizon - 1)
        before = optimizee.start(rule)
        if steps > 0:
            before, _ = unroll(optimizee, before, rule, steps)
        after, _ = unroll(optimizee, before, rule, 1)
        for name, p, q in zip(
            optimizee.names, before.params, after.params, strict=True
        ):
            ratio = ((q - p).norm() / p.norm().clamp(min=1e-12)).item()
            writer.add_scalar(f"update_to_weight/{name}", ratio, self.outer_step)

    def step(self) -> list[Result]:
        """One outer step of all optimizees."""
        owned = [one for one in self.optimizees if self.ranks.owns(one.number)]
        made = self.worker.run(owned)
        by_number = {}
        for optimizee, (result, _) in zip(owned, made, strict=True):
            by_number[optimizee.number] = result
        by_number = self.ranks.all_gather(by_number)
        of_all = [by_number[number] for number in range(len(self.optimizees))]
        with uninterrupted():
            self.outer_step += 1
            self._update_metanet(of_all)
            # adds a truncation to all optimizees
            for optimizee, (_, state) in zip(owned, made, strict=True):
                optimizee.state = state
            for optimizee, result in zip(self.optimizees, of_all, strict=True):
                inner_loss = result.inner_loss if result.is_usable else inf
                optimizee.advance(result.first_loss, inner_loss, self.outer_step)
        return of_all

    def _update_metanet(self, results: Sequence[Result]) -> None:
        gradients = [r.meta_gradient for r in results if r.is_usable]
        if not gradients:
            return
        factor = learning_rate_factor(self.outer_step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor
        mean = torch.stack(gradients).to(self.device).mean(0)
        for p, piece in zip(
            self.metanet.parameters(), as_weights(mean, self.metanet), strict=True
        ):
            p.grad = piece.clone()
        self.optimizer.step()
        self.mean.update_parameters(self.metanet)

    def validate(self) -> Metrics:
        """Whole inner runs on the first problem.

        Adds to the log, and stores the weights when their mean loss is the lowest yet.
        """
        runs = {}
        for k in filter(self.ranks.owns, range(self.config.validation_seeds)):
            optimizee = self._validation_optimizee(k)
            runs[k] = whole_run(optimizee, self.averaged, self.config.horizon)
        runs = self.ranks.all_gather(runs)
        metrics = mean_metrics([runs[k] for k in sorted(runs)])
        with uninterrupted():
            record = {"outer_step": self.outer_step, **metrics._asdict()}
            self.log.append(record)
            is_best = metrics.loss < self.best
            if is_best:
                self.best = metrics.loss
            if self.ranks.is_first:
                lines = [json.dumps(line) + "\n" for line in self.log]
                (self.folder / "log.jsonl").write_text("".join(lines))
                if is_best:
                    best = replace(self.trained(), table={"validation": record})
                    save_pretrained(best, self.folder / "best.safetensors")
        return metrics

    def trained(self) -> LearnedOptimizer:
        """The averaged weights, with this run as a stage of their recipe."""
        settings = named_settings(self.config, IRRELEVANT)
        details = {"outer_step": self.outer_step, **settings}
        return with_stage(self.averaged, "meta_train.training.train", details)

    def _validation_optimizee(self, number: int) -> Optimizee:
        seed = derive_seed(self.config.seed, 11, number)
        problem = self.worker.problems[0]
        return Optimizee(problem, seed, self.config.autocast, device=self.device)

    def state(self) -> dict[str, Any]:
        states = {}
        for optimizee in self.optimizees:
            if self.ranks.owns(optimizee.number):
                states[optimizee.number] = optimizee.state
        states = self.ranks.all_gather(states)
        optimizees = []
        for optimizee in self.optimizees:
            fields = {**vars(optimizee), "state": states[optimizee.number]}
            del fields["config"]
            optimizees.append(fields)
        return {
            "metanet": self.metanet.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "slots": optimizees,
            "outer_step": self.outer_step,
            "best": self.best,
            "log": self.log,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.metanet.load_state_dict(state["metanet"])
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizees = [
            OptimizeeProgress(self.config, **fields) for fields in state["slots"]
        ]
        for optimizee in self.optimizees:
            is_own = self.ranks.owns(optimizee.number)
            optimizee.state = placed(optimizee.state, self.device) if is_own else None
        self.outer_step = state["outer_step"]
        self.best = state["best"]
        self.log = state["log"]


def placed(state: Any, device: torch.device) -> Any:
    """A state with its GPU tensors on this rank's device."""
    return tree_map_only(torch.Tensor, lambda x: x if x.is_cpu else x.to(device), state)


def advice(config: Config, outer_step: int, made_for: int | None) -> Iterator[str]:
    """Lines before a run whose learning rate schedule may be unexpected.

    outer_step: where it begins. made_for: other `outer_steps` of its checkpoint.
    """
    count, warmup = config.outer_steps, config.warmup
    if made_for is not None:
        yield (
            f"outer_steps: the checkpoint is of a run of {made_for} outer "
            f"steps. The learning rate now falls until outer step {count}, so the "
            f"result is not that of a run of {count} from its start."
        )
    if outer_step >= count:
        yield (
            f"outer_steps: {count}, and the checkpoint stands at outer step "
            f"{outer_step}: nothing is left to train"
        )
    elif count <= warmup:
        yield (
            f"warning: {count} outer steps are not more than --warmup {warmup}, so "
            "the learning rate only rises. Lower --warmup."
        )


def summary(outer_step: int, metrics: Metrics) -> str:
    """The line that is printed for a validation."""
    text = f"outer step {outer_step}: validation loss {metrics.loss:.4f}"
    if metrics.accuracy is None:
        return text
    return f"{text}, accuracy {100 * metrics.accuracy:.2f} %"


def run(config: Config) -> None:
    try:
        run_on_ranks(config.processes, run_rank, config, check=MetaTrainer)
    except RankLost as error:
        raise RankLost(f"{error}; {stored_progress(config)}") from None
    except KeyboardInterrupt:
        raise Interrupted(stored_progress(config)) from None
    if os.environ.get("RANK", "0") == "0":
        print(next_steps(config))


def next_steps(config: Config) -> str:
    """Where the best weights are, and what to do with them."""
    best = Path(config.folder) / "best.safetensors"
    if not best.exists():
        return f"no validation loss was finite, so there is no '{best}'. Lower --lr."
    files = f"--weights {best} --output {best.parent}.safetensors"
    problem = f"--problems {config.problems[0]}"
    metanet = f" --metanet {config.metanet}" if ":" in config.metanet else ""
    return (
        f"best weights: {best}\nnext, choose their gain: "
        f"python -m meta_train.selection.sweep {files} {problem}{metanet}"
    )


def stored_progress(config: Config) -> str:
    """The outer step of the folder's checkpoint, in a sentence."""
    folder, step = Path(config.folder), None
    path = folder / "checkpoint.pt"
    if path.exists():
        step = read_checkpoint(path, trusted=True)["outer_step"]
    return checkpoint_message(folder, step, MetaTrainer.step_name)


def run_rank(config: Config) -> None:
    """One rank of those that this process was started with."""
    with process_group() as ranks:
        MetaTrainer(config, ranks).run()


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
