"""Programs that train with an optimizer of the user: transformers' Trainer, Lightning,
timm."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from ngopt import NGOptimizer
from ngopt.optimizer.learning_rates import BY_LR
from ngopt.optimizer.param_groups import BUILT_IN
from tests.ngopt.training import network, snapshot

STEPS = 8


@pytest.fixture(autouse=True)
def _no_warning_is_ours(recwarn):
    """Programs may warn of themselves."""
    warnings.simplefilter("always")
    yield
    assert not [w for w in recwarn if "NGOptimizer" in str(w.message)]


def traced(model, **settings):
    return NGOptimizer(model.parameters(), model=model, **settings)


def weight_decays(opt):
    return [group["weight_decay"] for group in opt.param_groups]


class TestTransformers:
    def classifier(self):
        """BERT, without dropout."""
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=8,
        )
        return transformers.BertForSequenceClassification(config)

    def trained(self, folder, model, resume=None, arguments=None, **settings):
        """The Trainer at the end of `STEPS` steps, with its losses."""
        from transformers import Trainer, TrainingArguments

        made = torch.Generator().manual_seed(1)
        tokens = torch.randint(20, (64, 8), generator=made)
        examples = [{"input_ids": x, "labels": x[0] % 2} for x in tokens]
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            logging_steps=1,
            save_steps=STEPS // 2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **(arguments or {}),
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=examples,
            eval_dataset=examples[:8],
            **settings,
        )
        trainer.train(resume_from_checkpoint=resume)
        history = trainer.state.log_history
        return trainer, [row["loss"] for row in history if "loss" in row]

    def optimizers(self, model, scheduler):
        opt = traced(model, total_steps=STEPS)
        if scheduler == "plateau":
            return {"optimizers": (opt, ReduceLROnPlateau(opt, patience=STEPS))}
        return {"optimizers": (opt, None)}

    @pytest.mark.parametrize("scheduler", ["linear", "plateau"])
    def test_a_resumed_run_is_the_same_run(self, tmp_path, scheduler):
        runs = []
        for resume in (None, str(tmp_path / f"checkpoint-{STEPS // 2}")):
            model = self.classifier()
            trainer, losses = self.trained(
                tmp_path,
                model,
                resume,
                {"gradient_accumulation_steps": 2, "bf16": True},
                **self.optimizers(model, scheduler),
            )
            runs.append((losses, snapshot(model)))
            (group,) = trainer.optimizer.param_groups
            assert (group["lr_schedule"] == BUILT_IN) == (scheduler == "plateau")
            assert group["weight_decay"] is None
        (losses, params), (resumed, others) = runs
        assert resumed == losses
        assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))

    def test_groups_of_the_trainer_have_a_decay(self, tmp_path):
        """0 for norms and biases, `weight_decay` of the arguments for others."""
        trainer, _ = self.trained(
            tmp_path,
            self.classifier(),
            arguments={"weight_decay": 0.1, "learning_rate": 1e-5},
            optimizer_cls_and_kwargs=(NGOptimizer, {"weight_decay": None}),
        )
        assert weight_decays(trainer.optimizer) == [0.1, 0.0]
        group = trainer.optimizer.param_groups[0]
        assert group["lr_schedule"] == BY_LR and group["reference_lr"] == 1.0

    def test_its_own_plateau_keeps_the_schedule(self, tmp_path):
        model = self.classifier()
        trainer, _ = self.trained(
            tmp_path,
            model,
            arguments={
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "lr_scheduler_kwargs": {"patience": STEPS},
                "eval_strategy": "steps",
                "eval_steps": 2,
            },
            **self.optimizers(model, None),
        )
        assert trainer.optimizer.param_groups[0]["lr_schedule"] == BUILT_IN


class TestLightning:
    def module(self, scheduled=False):
        lightning = pytest.importorskip("lightning")

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
                self.losses = []

            def forward(self, x):
                return self.layers(x)

            def training_step(self, batch, _):
                x, y = batch
                loss = nn.functional.cross_entropy(self(x), y)
                self.losses.append(loss.item())
                return loss

            def configure_optimizers(self):
                total_steps = self.trainer.estimated_stepping_batches
                opt = traced(self, total_steps=total_steps)
                if not scheduled:
                    return opt
                cosine = CosineAnnealingLR(opt, total_steps)
                return [opt], [{"scheduler": cosine, "interval": "step"}]

        return Module()

    def trained(self, folder, epochs, resume=None, **kinds):
        """The module after some epochs of 4 steps of two batches each."""
        module = self.module(**kinds)
        from lightning.pytorch import Trainer
        from lightning.pytorch.callbacks import ModelCheckpoint

        made = torch.Generator().manual_seed(1)
        x = torch.randn(64, 4, generator=made)
        batches = DataLoader(TensorDataset(x, x.argmax(1) % 2), batch_size=8)
        saving = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            accumulate_grad_batches=2,
            gradient_clip_val=1.0,
            callbacks=[saving],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, batches, ckpt_path=resume)
        return trainer, module

    @pytest.mark.parametrize("scheduled", [False, True])
    def test_a_resumed_run_is_the_same_run(self, tmp_path, scheduled):
        _, module = self.trained(tmp_path, 4, scheduled=scheduled)
        begun = str(tmp_path / "epoch=1.ckpt")
        _, resumed = self.trained(tmp_path, 4, begun, scheduled=scheduled)
        assert resumed.losses == module.losses[16:]
        for p, q in zip(module.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(p, q)

    def test_more_epochs_make_the_schedule_longer(self, tmp_path):
        self.trained(tmp_path, 4)
        trainer, resumed = self.trained(tmp_path, 8, str(tmp_path / "epoch=3.ckpt"))
        opt = trainer.optimizers[0]
        assert opt.param_groups[0]["total_steps"] == 8 * 4
        assert {int(record["step"]) for record in opt.state.values()} == {8 * 4}
        assert sum(resumed.losses[-8:]) < sum(resumed.losses[:8])


class TestTimm:
    def created(self, model, **settings):
        factory = pytest.importorskip("timm.optim._optim_factory")
        known = factory.OptimizerRegistry()
        known.register(
            factory.OptimInfo("ngopt", NGOptimizer, has_eps=False, has_betas=False)
        )
        return known.create_optimizer(model, "ngopt", eps=1e-8, **settings)

    def test_groups_of_a_module_have_a_decay(self):
        """None is 0 there, and that of the rule for parameters."""
        model = network()
        for given, decays in ((0.1, [0.0, 0.1]), (None, [0.0])):
            assert weight_decays(self.created(model, weight_decay=given)) == decays
        opt = self.created(model.parameters(), weight_decay=None)
        assert weight_decays(opt) == [None]

    def test_layer_decay(self):
        model = network()
        model.group_matcher = lambda coarse: lambda name: int(name.split(".")[0])
        opt = self.created(model, lr=1.0, layer_decay=0.5)
        from timm.scheduler import CosineLRScheduler

        cosine = CosineLRScheduler(opt, t_initial=4, t_in_epochs=False)
        cosine.step_update(0)
        rates = {p: group["lr"] for group in opt.param_groups for p in group["params"]}
        weights = [layer.weight for layer in model if hasattr(layer, "weight")]
        assert [rates[p] for p in weights] == [2.0**-k for k in (4, 3, 2, 1, 0)]
