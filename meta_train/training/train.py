"""Meta-trains an optimizer:
`python -m meta_train.training.train --metanet ff --folder runs/ff`.

Writes into its folder: `config.json`, `checkpoint.pt` (from which the same command
resumes, bit for bit), `log.jsonl` (one line a validation), TensorBoard events, and
`best.safetensors`, the weights with the lowest validation loss.

With `--processes N`, or started as
`torchrun --nproc-per-node N -m meta_train.training.train ...`, each process unrolls a
share of the optimizees that takes about as long as the others; the number of processes
changes no result, and any number resumes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

from harness import cli
from harness.distributed import RankLost, Ranks, device_of, joined, on_ranks
from harness.files import make_folder
from harness.interrupts import Interrupted, uninterrupted
from harness.random import derive_seed
from harness.settings import named_settings
from meta_train.problems import Metrics, mean_metrics
from meta_train.training import checkpoint
from meta_train.training.config import Config, learning_rate_factor, settings_of
from meta_train.training.initial_weights import make_learned
from meta_train.training.optimizees import LifeConfig, Lives, Slot
from meta_train.training.rank_assignment import Costs, on_device, shared_out
from meta_train.training.rules import trained_metanet
from meta_train.training.tensorboard import LivePicture
from meta_train.training.truncations import Outcome, exchanged
from meta_train.training.unroll import Optimizee, whole_run
from meta_train.training.worker import Result, UnrollConfig, Worker
from ngopt.pretrained import save_pretrained


class MetaTrainer:
    """The outer loop: unrolls optimizees, averages their meta-gradients, steps AdamW,
    validates, saves.

    Every rank takes the same outer steps; what `Outcome` says of optimizees travels,
    and the state of one that another rank goes on with.
    """

    def __init__(self, config: Config, ranks: Ranks = Ranks()):  # noqa: B008
        self.config, self.ranks = config, ranks
        self.folder = Path(config.folder)
        self.learned = make_learned(
            config.metanet, config.init_from, config.metanet_config, config.seed
        )
        self.device = device_of(config.device)
        self.metanet = trained_metanet(self.learned).to(self.device)
        decayed = get_ema_multi_avg_fn(config.average)
        self.mean = AveragedModel(self.metanet, multi_avg_fn=decayed)
        self.mean.update_parameters(self.metanet)  # the first is a copy
        self.averaged = replace(self.learned, metanet=self.mean.module)
        unroll_config = settings_of(config, UnrollConfig, device=self.device)
        self.worker = Worker(unroll_config, self.learned)
        self.optimizer = torch.optim.AdamW(
            self.metanet.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.lives = Lives(settings_of(config, LifeConfig))
        self.slots = self.lives.first()
        self.costs = Costs()
        self.owners = [k % ranks.count for k in range(config.optimizees)]
        self.outer_step, self.best = 0, float("inf")
        self.log: list[dict[str, Any]] = []  # one record a validation

    def run(self) -> None:
        """Trains to the end, resuming where the folder's checkpoint stands."""
        make_folder(self.folder)
        self.load_checkpoint()
        live = None
        if self.ranks.is_first:
            settings = json.dumps(named_settings(self.config), indent=2)
            (self.folder / "config.json").write_text(settings)
            live = LivePicture(self.folder, self.outer_step)
        try:
            self._train(live)
        except KeyboardInterrupt:
            if self.ranks.count == 1:
                with uninterrupted():
                    self.save_checkpoint()
            raise
        finally:
            if live:
                live.close()

    def _train(self, live: LivePicture | None) -> None:
        start, steps = time.perf_counter(), self.config.outer_steps
        with tqdm(
            total=steps,
            initial=self.outer_step,
            unit="outer step",
            smoothing=0.05,
            disable=live is None,
        ) as bar:
            while True:
                if self._is_validation_due():
                    metrics = self.validate()
                    self.save_checkpoint()
                    if live:
                        self._show(live, metrics)
                        seconds = time.perf_counter() - start
                        tqdm.write(f"{self._line(metrics)}, {seconds:.0f} s")
                elif self.outer_step < steps:
                    self._step_and_show(bar, live)
                else:
                    break

    def _step_and_show(self, bar: tqdm, live: LivePicture | None) -> None:
        outcomes = self.step()
        meta_loss = fmean(outcome.meta_loss for outcome in outcomes)
        norm = fmean(outcome.norm for outcome in outcomes)
        bar.set_postfix(meta_loss=f"{meta_loss:.3f}", norm=f"{norm:.2g}")
        bar.update()
        if live:
            live.show_step(self.outer_step, meta_loss, norm)

    def _is_validation_due(self) -> bool:
        step, config = self.outer_step, self.config
        last = self.log[-1]["outer_step"] if self.log else 0
        is_time = step % config.validate_every == 0 or step == config.outer_steps
        return is_time and step > last

    def _show(self, live: LivePicture, metrics: Metrics) -> None:
        live.show_validation(self.outer_step, metrics)
        live.show_gradients(self.outer_step, self.metanet)
        optimizee = self._validation_optimizee(0)
        live.show_updates(self.outer_step, optimizee, self.averaged)

    def _line(self, metrics: Metrics) -> str:
        """What is printed of a validation."""
        found = f"outer step {self.outer_step}: validation loss {metrics.loss:.4f}"
        if metrics.accuracy is None:
            return found
        return f"{found}, accuracy {100 * metrics.accuracy:.2f} %"

    def step(self) -> list[Outcome]:
        """One outer step of all optimizees."""
        config = self.config
        self._share_out()
        own = [slot for slot in self.slots if self._is_own(slot)]
        results = self.worker.run([self.lives.job(slot) for slot in own])
        numbers = [slot.number for slot in own]
        outcomes = exchanged(
            dict(zip(numbers, results, strict=True)),
            len(self.slots),
            parameters_to_vector(self.metanet.parameters()).detach(),
            config.clip_norm,
            self.ranks,
        )
        with uninterrupted():
            self._advance(own, results, outcomes)
        return outcomes

    def _advance(
        self,
        own: Sequence[Slot],
        results: Sequence[Result],
        outcomes: Sequence[Outcome],
    ) -> None:
        """Moves the metanet and the optimizees on, after an outer step's unrolls.

        own: optimizees of this rank, with their results. outcomes: of all.
        """
        config = self.config
        gradients = [o.meta_gradient for o in outcomes if o.is_usable]
        self.outer_step += 1
        if gradients:
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * learning_rate_factor(self.outer_step, config)
            assign_gradient(self.metanet, torch.stack(gradients).mean(0))
            self.optimizer.step()
            self.mean.update_parameters(self.metanet)
        for slot, result in zip(own, results, strict=True):
            slot.state = result.state
        for slot, outcome in zip(self.slots, outcomes, strict=True):
            steps = self.lives.steps(slot)
            self.costs.measured(self._problem(slot), steps, outcome.seconds)
            inner_loss = outcome.inner_loss if outcome.is_usable else inf
            self.lives.advance(slot, outcome.first_loss, inner_loss, self.outer_step)

    def _share_out(self) -> None:
        """Which rank unrolls which optimizee next; those that change ranks take their
        states along.

        The same on all ranks, as all know the same times.
        """
        costs = [
            self.costs.of(self._problem(slot), self.lives.steps(slot))
            for slot in self.slots
        ]
        owners = shared_out(costs, self.owners, self.ranks.count)
        if owners == self.owners:
            return
        states = self.ranks.gathered(self._own_states())
        self.owners = owners
        for slot in self.slots:
            is_own = self._is_own(slot)
            state = states[slot.number]
            slot.state = placed(state, self.device) if is_own else None

    def _is_own(self, slot: Slot) -> bool:
        """Whether this rank unrolls an optimizee."""
        return self.owners[slot.number] == self.ranks.number

    def _own_states(self) -> dict[int, Any]:
        return {slot.number: slot.state for slot in self.slots if self._is_own(slot)}

    def _problem(self, slot: Slot) -> int:
        return self.worker.problem_of(self.lives.seed(slot))

    def validate(self) -> Metrics:
        """Whole inner trainings on the first problem;
        keeps the weights when their mean loss is the lowest yet."""
        config = self.config
        rows = torch.zeros(config.validation_seeds, 2, dtype=torch.float64)
        for k in range(config.validation_seeds):
            if self.ranks.owns(k):
                optimizee = self._validation_optimizee(k)
                found = whole_run(
                    optimizee, self.averaged, config.horizon, config.inner_weight_decay
                )
                accuracy = nan if found.accuracy is None else found.accuracy
                rows[k] = torch.tensor([found.loss, accuracy], dtype=torch.float64)
        results = [
            Metrics(loss, None if isnan(a) else a)
            for loss, a in self.ranks.summed(rows).tolist()
        ]
        metrics = mean_metrics(results)
        with uninterrupted():
            self._keep(metrics)
        return metrics

    def _keep(self, metrics: Metrics) -> None:
        """Logs a validation, and keeps the weights if they are the best."""
        record = {"outer_step": self.outer_step, **metrics._asdict()}
        self.log.append(record)
        if self.ranks.is_first:
            (self.folder / "log.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in self.log)
            )
        if metrics.loss < self.best:
            self.best = metrics.loss
            best = replace(
                self.averaged, recipe=self.recipe(), table={"validation": record}
            )
            if self.ranks.is_first:
                save_pretrained(best, self.folder / "best.safetensors")

    def _validation_optimizee(self, number: int) -> Optimizee:
        seed = derive_seed(self.config.seed, 11, number)
        problem = self.worker.problems[0]
        return Optimizee(problem, seed, self.config.autocast, device=self.device)

    def recipe(self) -> dict[str, Any]:
        """The steps that made the weights, the last one ours."""
        config = named_settings(self.config, checkpoint.NO_MATTER)
        stage = {
            "program": "meta_train.training.train",
            "outer_step": self.outer_step,
            **config,
        }
        return {"stages": [*self.learned.recipe["stages"], stage]}

    def save_checkpoint(self) -> None:
        states = self.ranks.gathered(self._own_states())
        if not self.ranks.is_first:
            return
        slots = [replace(slot, state=states[slot.number]) for slot in self.slots]
        state = {
            "metanet": self.metanet.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "slots": [vars(slot) for slot in slots],
            "outer_step": self.outer_step,
            "best": self.best,
            "log": self.log,
        }
        checkpoint.write(self.folder, state, named_settings(self.config))

    def load_checkpoint(self) -> None:
        state = checkpoint.read(self.folder, named_settings(self.config))
        if state is None:
            return
        self.metanet.load_state_dict(state["metanet"])
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.slots = [Slot(**slot) for slot in state["slots"]]
        for slot in self.slots:
            is_own = self._is_own(slot)
            slot.state = placed(slot.state, self.device) if is_own else None
        self.outer_step = state["outer_step"]
        self.best = state["best"]
        self.log = state["log"]


def placed(state: Any, device: torch.device) -> Any:
    """A state of another rank on a GPU of this one; what is on the host stays there."""

    def one(x: torch.Tensor) -> torch.Tensor:
        return x if x.is_cpu else on_device(x, device)

    return tree_map_only(torch.Tensor, one, state)


def assign_gradient(module: nn.Module, gradient: torch.Tensor) -> None:
    pieces = gradient.split([p.numel() for p in module.parameters()])
    for parameter, piece in zip(module.parameters(), pieces, strict=True):
        parameter.grad = piece.view_as(parameter).clone()


def run(config: Config) -> None:
    try:
        on_ranks(config.processes, run_rank, config, check=MetaTrainer)
    except RankLost as error:
        stands = checkpoint.whereabouts(config.folder)
        raise RankLost(
            f"{error}; {stands}, and the same command goes on from there"
        ) from None
    except KeyboardInterrupt:
        stands = checkpoint.whereabouts(config.folder)
        raise Interrupted(
            f"{stands}; the same command with --folder {config.folder} goes on from there"
        ) from None


def run_rank(config: Config) -> None:
    """One rank of those that this process was started with."""
    with joined() as ranks:
        MetaTrainer(config, ranks).run()


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
