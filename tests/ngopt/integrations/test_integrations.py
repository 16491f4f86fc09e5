import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ngopt import NGOptimizer, build_graph
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
    torch.testing.assert_close(values, others)


class TestTimm:
    @pytest.fixture(autouse=True)
    def factory(self):
        module = pytest.importorskip("timm.optim._optim_factory")
        timm_integration.register()
        yield module
        del module.default_registry._optimizers["ngopt"]

    @pytest.mark.parametrize("settings", [{}, {"weight_decay": 2e-5}], ids=str)
    def test_the_weight_decay_is_that_of_the_default(self, settings, factory):
        """2e-5 is what timm's train.py passes unless it is set."""
        model = network()
        optimizer = factory.create_optimizer_v2(model, opt="ngopt", **settings)
        assert isinstance(optimizer, NGOptimizer)
        assert all(group["weight_decay"] is None for group in optimizer.param_groups)
        stepped(model, optimizer)

    def test_a_weight_decay_that_was_set_is_kept(self, factory):
        optimizer = factory.create_optimizer_v2(network(), "ngopt", weight_decay=0.1)
        decays = {group["weight_decay"] for group in optimizer.param_groups}
        assert decays == {0.0, 0.1}

    def test_its_own_script_finds_the_name(self, tmp_path):
        script = tmp_path / "train.py"
        script.write_text(
            "import sys, torch, timm.optim\n"
            "if __name__ == '__main__':\n"
            "    model = torch.nn.Linear(2, 2)\n"
            "    opt = timm.optim.create_optimizer_v2(model, opt=sys.argv[1])\n"
            "    print(type(opt).__name__)\n"
        )
        command = [sys.executable, "-m", "ngopt.integrations.timm", script, "ngopt"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "NGOptimizer"


def gpt(transformers):
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8)
    return transformers.GPT2LMHeadModel(config)


def token_rows(count=4):
    tokens = torch.randint(100, (count, 8))
    return [{"input_ids": row, "labels": row} for row in tokens]


def training_arguments(transformers, folder, **settings):
    settings = {"report_to": [], "use_cpu": True, "save_strategy": "no", **settings}
    return transformers.TrainingArguments(str(folder), **settings)


class TestTransformers:
    @pytest.fixture
    def transformers(self):
        pytest.importorskip("accelerate")
        return pytest.importorskip("transformers")

    def test_groups_of_the_trainer_are_replaced_by_one(self):
        model = network()
        cls, settings = transformers_integration.trainer_arguments(model)
        # the Trainer's groups
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": [p for p in model.parameters() if p.ndim < 2]},
        ]
        groups[0]["weight_decay"] = groups[1]["weight_decay"] = 0.0
        optimizer = cls(groups, **settings)
        assert_same(stepped(model, optimizer), expected())
        assert [len(group["params"]) for group in optimizer.param_groups] == [6]

    def test_frozen_parameters_are_left_out(self):
        model = network()
        model[0].requires_grad_(False)
        trainable = [p for p in model.parameters() if p.requires_grad]
        cls, settings = transformers_integration.trainer_arguments(model)
        assert len(cls(trainable, **settings).param_groups[0]["params"]) == 4

    def test_a_graph_of_the_user_is_used(self):
        model = network()
        graph = build_graph(model)
        cls, settings = transformers_integration.trainer_arguments(model, graph=graph)
        assert cls(model.parameters(), **settings).graph is graph

    def test_errors(self):
        model = network()
        arguments = transformers_integration.trainer_arguments
        with pytest.raises(ValueError, match="expected a torch.nn.Module; got gen"):
            arguments(model.parameters())
        with pytest.raises(TypeError, match="unexpected keyword argument 'total_step'"):
            arguments(model, total_step=3)
        cls, settings = arguments(network())
        with pytest.raises(ValueError, match="6 parameters of the Trainer are not in"):
            cls(model.parameters(), **settings)

    def test_the_trainer_steps_with_a_traced_graph(self, transformers, tmp_path):
        model = gpt(transformers)
        trainer = transformers.Trainer(
            model,
            training_arguments(transformers, tmp_path, max_steps=2),
            train_dataset=token_rows(),
            optimizer_cls_and_kwargs=transformers_integration.trainer_arguments(
                model, total_steps=2
            ),
        )
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        assert isinstance(optimizer, NGOptimizer)
        assert optimizer.param_groups[0]["weight_decay"] is None
        assert not any(optimizer.graph.inferred)

    def test_checkpoints_of_an_optimizer_with_model_can_be_resumed(
        self, transformers, tmp_path
    ):
        model, data = gpt(transformers), token_rows()
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        arguments = training_arguments(transformers, tmp_path, **settings)
        opt = NGOptimizer(model.named_parameters(), model=model, total_steps=4)
        first = transformers.Trainer(
            model, arguments, train_dataset=data, optimizers=(opt, None)
        )
        first.train()
        again = gpt(transformers)
        second = transformers.Trainer(
            again,
            arguments,
            train_dataset=data,
            optimizer_cls_and_kwargs=transformers_integration.trainer_arguments(
                again, total_steps=4
            ),
        )
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert_same(list(again.parameters()), list(model.parameters()))

    @pytest.mark.parametrize(
        "settings",
        [
            {"max_steps": 3},
            {"num_train_epochs": 2, "gradient_accumulation_steps": 2},
            {"num_train_epochs": 1.5, "per_device_train_batch_size": 2},
            {"num_train_epochs": 2, "dataloader_drop_last": True},
            {"num_train_epochs": 1, "gradient_accumulation_steps": 99},
        ],
        ids=str,
    )
    def test_trainer_steps_is_the_number_of_steps(
        self, transformers, tmp_path, settings
    ):
        settings = {"per_device_train_batch_size": 4, **settings}
        arguments = training_arguments(transformers, tmp_path, **settings)
        data = token_rows(22)
        model = gpt(transformers)
        opt = torch.optim.SGD(model.parameters(), 1e-3)
        trainer = transformers.Trainer(
            model, arguments, train_dataset=data, optimizers=(opt, None)
        )
        trainer.train()
        steps = transformers_integration.trainer_steps(arguments, len(data))
        assert steps == trainer.state.max_steps == trainer.state.global_step


def test_trainer_steps_needs_examples():
    arguments = SimpleNamespace(max_steps=-1)
    with pytest.raises(ValueError, match="expected examples of 1 or more; got 0"):
        transformers_integration.trainer_steps(arguments, 0)


def test_hydra_instantiates_it():
    hydra = pytest.importorskip("hydra.utils")
    config = {"_target_": "ngopt.NGOptimizer", "_partial_": True, "total_steps": 10}
    model = network()
    optimizer = hydra.instantiate(config)(model.parameters())
    assert optimizer.param_groups[0]["total_steps"] == 10


@pytest.mark.filterwarnings("ignore")  # of lightning and jsonargparse
def test_lightning_cli_instantiates_it(tmp_path, monkeypatch):
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
