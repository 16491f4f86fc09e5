import pytest
import torch
from torch import nn

from ngopt import NGOptimizer
from ngopt.integrations import timm as timm_integration
from ngopt.integrations import transformers as transformers_integration


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def stepped(model, optimizer):
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def expected():
    model = network()
    return stepped(model, NGOptimizer(model.parameters()))


def assert_same(values, others):
    for value, other in zip(values, others, strict=True):
        torch.testing.assert_close(value, other)


class TestTimm:
    @pytest.fixture(autouse=True)
    def factory(self):
        module = pytest.importorskip("timm.optim._optim_factory")
        timm_integration.register()
        yield module
        del module.default_registry._optimizers["ngopt"]

    def test_default_is_that_of_ngopt(self, factory):
        model = network()
        optimizer = factory.create_optimizer_v2(model, opt="ngopt")
        assert isinstance(optimizer, NGOptimizer)
        assert all(group["own_weight_decay"] for group in optimizer.param_groups)
        stepped(model, optimizer)

    def test_a_weight_decay_that_was_set_stays(self, factory):
        optimizer = factory.create_optimizer_v2(network(), "ngopt", weight_decay=0.1)
        decays = {group["weight_decay"] for group in optimizer.param_groups}
        assert decays == {0.0, 0.1}


class TestTransformers:
    def test_groups_are_those_of_ngopt(self):
        model = network()
        cls, settings = transformers_integration.trainer_arguments(model)
        assert_same(stepped(model, cls(**settings)), expected())

    def test_trainer_uses_it(self, tmp_path):
        pytest.importorskip("accelerate")
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8)
        model = transformers.GPT2LMHeadModel(config)
        tokens = torch.randint(100, (4, 8))
        data = [{"input_ids": row, "labels": row} for row in tokens]
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no"
        )
        trainer = transformers.Trainer(
            model,
            arguments,
            train_dataset=data,
            optimizer_cls_and_kwargs=transformers_integration.trainer_arguments(
                model, total_steps=2
            ),
        )
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        assert isinstance(optimizer, NGOptimizer)
        assert optimizer.param_groups[0]["own_weight_decay"]


def test_hydra_makes_it():
    hydra = pytest.importorskip("hydra.utils")
    config = {"_target_": "ngopt.NGOptimizer", "_partial_": True, "total_steps": 10}
    model = network()
    optimizer = hydra.instantiate(config)(model.parameters())
    assert optimizer.param_groups[0]["total_steps"] == 10


def test_lightning_cli_makes_it(tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning.pytorch")
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringModel

    class Model(BoringModel):
        configure_optimizers = lightning.LightningModule.configure_optimizers

    monkeypatch.chdir(tmp_path)
    cli = LightningCLI(
        Model,
        run=False,
        save_config_callback=None,
        args=["--optimizer", "ngopt.NGOptimizer", "--optimizer.total_steps", "10"],
    )
    optimizers = cli.model.configure_optimizers()
    while isinstance(optimizers, list | tuple):
        optimizers = optimizers[0]
    assert isinstance(optimizers, NGOptimizer)
