"""Programs that cut, copy and save the state of single parameters."""

import io
import warnings
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ngopt import NGOptimizer

ROWS = 60
MASK = torch.arange(ROWS) % 3 > 0


def train(p, opt, steps=6):
    """Each row has a gradient of its own, so rows do not depend on each other."""
    for _ in range(steps):
        opt.zero_grad()
        (p.square() * torch.linspace(0.1, 1, p[0].numel()).view_as(p[0])).sum(
            tuple(range(1, p.dim()))
        ).mean().backward()
        opt.step()


def begun(shape=(ROWS, 3), **settings):
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(shape))
    opt = NGOptimizer([p], **settings)
    train(p, opt)
    return p, opt


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file


@pytest.mark.parametrize("shape", [(ROWS, 3), (ROWS,), (ROWS, 2, 3)])
@pytest.mark.parametrize("keep", [MASK, [5, 7, 5], torch.arange(2 * ROWS) % ROWS])
def test_selected_rows_keep_their_state(shape, keep):
    p, opt = begun(shape, total_steps=100)
    before = dict(opt.state[p])
    new = nn.Parameter(p.detach()[keep])
    opt.select_rows(p, new, keep)
    new.grad = torch.zeros_like(new)
    opt.param_groups[0]["lr"] = 0.0
    opt.step()  # changes no weight
    after = opt.state[new]
    rows = torch.arange(ROWS)[keep]
    assert p not in opt.state and after["step"] == before["step"] + 1
    columns = before["exp_avg_0"].numel() // ROWS
    for key, factor in (("exp_avg_0", 0.9), ("displacement", 1.0)):
        expected = factor * before[key].reshape(ROWS, columns)[rows]
        assert_close(after[key].reshape(-1, columns), expected)
    mean_path = after["path"] / len(rows)
    assert_close(mean_path, before["path"] / ROWS)


def test_all_rows_in_their_order_change_nothing():
    ends = []
    for is_selected in (False, True):
        p, opt = begun(total_steps=40)
        if is_selected:
            new = nn.Parameter(p.detach().clone())
            opt.select_rows(p, new, range(ROWS))
            p = new
        train(p, opt)
        ends.append(p.detach())
    assert torch.equal(*ends)


def test_what_rows_share_starts_anew():
    """Rows of a layer have a common Kronecker factor."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    opt = NGOptimizer(layer.named_parameters(), total_steps=20)
    train(layer.weight, opt)
    old, layer.weight = layer.weight, nn.Parameter(layer.weight.detach()[1:])
    opt.select_rows(old, layer.weight, range(1, 5))
    other = NGOptimizer(layer.named_parameters(), total_steps=20)
    other.load_state_dict(opt.state_dict())  # is complete
    train(layer.weight, opt, 1)
    record = opt.state[layer.weight]
    assert record["step"] == 7 and record["rows_0"].shape == (1, 4, 4)
    assert opt.param_groups[0]["param_names"] == ["weight", "bias"]


def test_rows_in_another_order_have_no_factor_of_the_old_one():
    torch.manual_seed(0)
    old = nn.Linear(6, 5).weight
    opt = NGOptimizer([("weight", old)], total_steps=20)
    train(old, opt)
    order = [4, 3, 2, 1, 0]
    new = nn.Parameter(old.detach()[order])
    columns = opt.state[old]["channels_0"]
    opt.select_rows(old, new, order)
    kept = opt.state[new]
    assert not any(key.startswith(("rows", "exp_avg")) for key in kept)
    assert torch.equal(kept["channels_0"], columns)
    train(new, opt, 1)
    assert opt.state[new]["step"] == 7


def test_cleared_state_starts_anew():
    ends = []
    for clear in (
        lambda opt: opt.state.clear(),
        lambda opt: setattr(opt, "state", defaultdict(dict)),
        lambda opt: opt.state.pop(opt.param_groups[0]["params"][0]),
    ):
        p, opt = begun()
        clear(opt)
        train(p, opt)
        assert opt.state[p]["step"] == 6
        ends.append(p.detach())
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_rows_that_do_not_fit():
    p, opt = begun()
    new = nn.Parameter(p.detach()[:4])
    with pytest.raises(ValueError, match="a row for each of the 4 of new; got 5 rows$"):
        opt.select_rows(p, new, range(5))
    with pytest.raises(ValueError, match="got 4 rows of another tensor"):
        opt.select_rows(new, new, range(4))


def resized(record, change):
    """As programs of points edit the state of Adam."""
    for key in record:
        if key != "step":
            record[key] = change(record[key])


EDITS = {
    "mask": (lambda x: x[MASK], lambda x: x[MASK]),
    "append": (
        lambda x: torch.cat([x, x[:7]]),
        lambda x: torch.cat([x, torch.zeros(7, *x.shape[1:])]),
    ),
    "split": (
        lambda x: torch.cat([x[MASK], x[:7]]),
        lambda x: torch.cat([x[MASK], torch.zeros(7, *x.shape[1:])], 0),
    ),
    "index": (
        lambda x: x.index_select(0, torch.arange(9)),
        lambda x: x.index_select(0, torch.arange(9)),
    ),
    "reset": (torch.clone, torch.zeros_like),
}


@pytest.mark.parametrize("shape", [(ROWS, 3), (ROWS,)])
@pytest.mark.parametrize("edit", EDITS)
def test_state_that_is_edited_by_hand(edit, shape):
    """It partly starts anew, with a warning; training continues."""
    p, opt = begun(shape, total_steps=100)
    of_values, of_state = EDITS[edit]
    record = opt.state.pop(p)
    resized(record, of_state)
    new = nn.Parameter(of_values(p.detach()))
    opt.param_groups[0]["params"] = [new]
    opt.state[new] = record
    before = new.detach().square().mean()
    with pytest.warns(UserWarning, match="state of parameter 0 no .*select_rows"):
        train(new, opt, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(new, opt, 30)
    assert new.detach().square().mean() < 0.7 * before
    assert opt.state[new]["step"] == (31 if edit == "reset" else 37)


def test_edited_state_of_the_same_parameter():
    p, opt = begun()
    opt.state[p]["exp_avg_0"] = opt.state[p]["exp_avg_0"][:, :5]
    message = r"'exp_avg_0' in the state of 'parameter 0'.*\(1, 60, 3, 1\); got.*select"
    with pytest.raises(ValueError, match=message):
        train(p, opt)
    opt.state.pop(p)
    train(p, opt)
    del opt.state[p]["rms"]
    with pytest.raises(KeyError, match=r"no 'rms', but .*optimizer\.select_rows"):
        train(p, opt)
    opt.state.pop(p)
    train(p, opt)
    with pytest.raises(ValueError, match=r"eigenbases that are not zero.*state\.pop"):
        opt.state[p]["channels_basis_0"].zero_()


def test_keys_of_adam_are_refused_and_the_way_is_named():
    p, opt = begun()
    with pytest.raises(KeyError, match=r"no 'exp_avg', but .*optimizer\.select_rows"):
        opt.state[p]["exp_avg"]
    assert "exp_avg" not in opt.state[p] and opt.state[p].get("exp_avg") is None


def test_rows_of_state_cannot_be_set():
    """They would be those of a scalar, or of a stack of matrices."""
    p, opt = begun()
    before = {key: value.clone() for key, value in opt.state[p].items()}
    for key in before.keys() - {"step", "average"}:
        opt.state[p][key][torch.tensor([0, 7])] = 0
        assert torch.equal(opt.state[p][key], before[key])


def test_state_of_one_parameter_is_saved_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 80), nn.Linear(80, 10))
    opt = NGOptimizer(model.named_parameters())
    model(torch.randn(4, 100)).square().mean().backward()
    opt.step()
    record = opt.state[model[0].bias]
    file = saved(record)
    assert len(file.getvalue()) < 10_000
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert {type(value) for value in loaded.values()} == {torch.Tensor}
    for key, value in record.items():
        assert torch.equal(loaded[key], value)
    # a whole state keeps the packed tensors, which take fewer bytes
    whole = len(saved(opt.state_dict()).getvalue())
    alone = sum(len(saved(opt.state[p]).getvalue()) for p in model.parameters())
    assert whole < alone


class Scene(nn.Module):
    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(torch.randn(ROWS, 3))
        self.colors = nn.Parameter(torch.randn(ROWS, 2))

    def forward(self, places):
        return torch.tanh(places @ self.means.T) @ self.colors


def test_a_traced_module_is_traced_again_with_selected_rows():
    torch.manual_seed(0)
    model, places = Scene(), torch.randn(8, 3)
    opt = NGOptimizer(model.named_parameters(), model=model, total_steps=20)

    def step():
        opt.zero_grad()
        model(places).square().mean().backward()
        opt.step()
        return str(opt)

    assert "inferred" not in step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, old in dict(model.named_parameters()).items():
            setattr(model, name, nn.Parameter(old.detach()[MASK]))
            opt.select_rows(old, getattr(model, name), MASK)
        assert "inferred" not in step()
