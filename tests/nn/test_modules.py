"""Modules: parameters and their names, modes, state, layers against plain formulas and central differences."""
import sys

import numpy as np
import pytest

from gnncy import nn
from gnncy._threads import working_threads


def data(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def check_module(module, *arrays):
    """Largest relative error of the gradients by the inputs and by all parameters of a float64 module."""
    parameters = list(module.parameters())

    def function(*tensors):
        values = tensors[:len(arrays)]
        for parameter, tensor in zip(parameters, tensors[len(arrays):], strict=True):
            parameter.data = tensor.data
        out = module(*values)
        # The parameters' gradients are read off the module itself.
        return Through.apply(*tensors, out=out, parameters=parameters, inputs=values)

    return nn.check_gradient(function, [*arrays, *(p.data for p in parameters)])


class Through(nn.Operation):
    """Hands gradients that a module leaves in its own leaves to the tensors of check_gradient."""

    def forward(self, *arrays, out, parameters, inputs):
        return out.data

    def backward(self, grad):
        for p in self.options["parameters"]:
            p.grad = None
        self.options["out"].backward(grad)
        found = [t.grad for t in self.options["inputs"]]
        for t in self.options["inputs"]:
            t.grad = None
        return tuple(g if g is not None else np.zeros(t.shape)
                     for g, t in zip([*found, *(p.grad for p in self.options["parameters"])], self.inputs, strict=True))


class Net(nn.Module):
    def __init__(self):
        self.first = nn.Linear(3, 4, rng=0)
        self.blocks = [nn.Sequential(nn.Linear(4, 4, rng=1), nn.Dropout(0.5)), nn.Dropout(0.5)]
        self.shared = self.first
        self.scale = nn.Parameter(np.ones(1, np.float32))
        self.note = "not a parameter"

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x * self.scale


def test_named_parameters_are_found_once_in_order():
    assert [name for name, _ in Net().named_parameters()] == [
        "scale", "first.weight", "first.bias", "blocks.0.layers.0.weight", "blocks.0.layers.0.bias"]


def test_train_eval_and_apply_reach_every_module():
    net = Net()
    assert net.eval() is net and not any(m.training for m in net.modules())
    assert net.train() is net and all(m.training for m in net.modules())
    seen = []
    net.apply(lambda m: seen.append(type(m).__name__))
    assert seen.count("Dropout") == 2 and seen[0] == "Net"


def test_dropout_needs_a_key_for_each_step_and_each_layer_has_its_own_mask():
    net, x = Net(), np.ones((50, 3), np.float32)
    with pytest.raises(RuntimeError, match="set_step_key"):
        net(x)
    first = net.set_step_key(5)(x).data
    np.testing.assert_array_equal(net.set_step_key(5)(x).data, first)
    assert (net.set_step_key(6)(x).data != first).any()
    keys = [m.key for m in net.modules() if isinstance(m, nn.Dropout)]
    assert len(set(keys)) == 2
    np.testing.assert_array_equal(net.eval()(x).data, net(x).data)


def test_state_dict_round_trip_and_refusals():
    net, other = Net(), Net()
    state = net.state_dict()
    net.first.weight.data += 1
    assert (state["first.weight"] != net.first.weight.data).all()  # a copy
    buffer = other.first.weight.data
    other.load_state_dict(net.state_dict())
    assert other.first.weight.data is buffer  # in place
    np.testing.assert_array_equal(buffer, net.first.weight.data)
    with pytest.raises(ValueError, match=r"missing \['scale'\], unknown \['skale'\]"):
        net.load_state_dict({("skale" if k == "scale" else k): v for k, v in state.items()})
    before = net.scale.data.copy()
    with pytest.raises(ValueError, match=r"first.bias must have shape \(4,\), got \(5,\)"):
        net.load_state_dict(state | {"first.bias": np.ones(5), "scale": np.zeros(1)})
    np.testing.assert_array_equal(net.scale.data, before)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_state_in_a_file_round_trip(tmp_path, ending):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    net = nn.Sequential(nn.Linear(3, 4, rng=0, dtype=np.float64), nn.BatchNorm(4))
    net.layers[1].running_mean[:] = 7
    path = tmp_path / f"net.{ending}"
    nn.save(net.state_dict(), path)
    state = nn.load(path)
    assert {k: v.dtype for k, v in state.items()} == {k: v.dtype for k, v in net.state_dict().items()}
    other = nn.Sequential(nn.Linear(3, 4, rng=1, dtype=np.float64), nn.BatchNorm(4))
    other.load_state_dict(state)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_state_files_refuse_other_names_and_name_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="must end in .safetensors or .npz"):
        nn.save({}, tmp_path / "net.pt")
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        nn.save({"a": np.ones(1)}, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_batch_norm_keeps_running_statistics_in_its_state():
    layer, x = nn.BatchNorm(3, momentum=0.5), data(8, 3).astype(np.float32)
    layer(x)
    np.testing.assert_allclose(layer.running_mean, 0.5 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.running_var, 0.5 + 0.5 * x.var(0, ddof=1), rtol=1e-5)
    state = layer.state_dict()
    assert set(state) == {"weight", "bias", "running_mean", "running_var"}
    out = layer.eval()(x).data
    np.testing.assert_array_equal(layer.running_mean, state["running_mean"])  # moved while training alone
    other = nn.BatchNorm(3)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.eval()(x).data, out)


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_cell(reset_after):
    def sigmoid(v):
        return 1 / (1 + np.exp(-v))
    cell, x, h = nn.GRUCell(3, 2, reset_after, rng=0, dtype=np.float64), data(4, 3), data(4, 2)
    w, u = cell.from_input, cell.from_state
    w.bias.data[:], u.bias.data[:] = data(6), data(6, seed=1)
    by_x, by_h = x @ w.weight.data + w.bias.data, h @ u.weight.data + u.bias.data
    r, z = sigmoid(by_x[:, :2] + by_h[:, :2]), sigmoid(by_x[:, 2:4] + by_h[:, 2:4])
    inner = r * by_h[:, 4:] if reset_after else (r * h) @ u.weight.data[:, 4:] + u.bias.data[4:]
    n = np.tanh(by_x[:, 4:] + inner)
    np.testing.assert_allclose(cell(x, h).data, (1 - z) * n + z * h)
    assert check_module(cell, x, h) < 1e-6


def test_embedding_looks_up_rows_and_adds_their_gradients():
    table = nn.Embedding(5, 3, rng=0)
    ids = np.array([4, 0, 4])
    out = table(ids)
    np.testing.assert_array_equal(out.data, table.weight.data[ids])
    out.sum().backward()
    np.testing.assert_array_equal(table.weight.grad[:, 0], [1, 0, 0, 0, 2])
    with pytest.raises(IndexError, match=r"ids must lie in 0\.\.4, got 5"):
        table([5])


def test_frozen_parameters_get_no_gradient():
    model = nn.MLP([3, 4, 2], rng=0)
    model.layers[0].requires_grad_(False)
    model(np.ones((2, 3), np.float32)).sum().backward()
    assert model.layers[0].weight.grad is None and model.layers[2].weight.grad is not None


def test_flatten_parameters_makes_views_of_one_array():
    net = Net()
    expected = net.eval()(np.ones((2, 3), np.float32)).data
    data_, grad = nn.flatten_parameters(net)
    assert data_.shape == grad.shape == (sum(p.size for p in net.parameters()),)
    np.testing.assert_array_equal(net(np.ones((2, 3), np.float32)).data, expected)
    net(np.ones((2, 3), np.float32)).sum().backward()
    assert all(np.shares_memory(p.grad, grad) and np.shares_memory(p.data, data_) for p in net.parameters())
    np.testing.assert_array_equal(grad, np.concatenate([p.grad.ravel() for p in net.parameters()]))
    net.zero_grad()
    assert not grad.any() and np.shares_memory(net.scale.grad, grad)
    net.load_state_dict(Net().state_dict())
    assert all(np.shares_memory(p.data, data_) for p in net.parameters())
    with pytest.raises(ValueError, match="no parameters"):
        nn.flatten_parameters(nn.ReLU())
    with pytest.raises(ValueError, match="one dtype"):
        nn.flatten_parameters(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, dtype=np.float64)))


def test_linear_is_glorot_uniform_and_seeded():
    layer = nn.Linear(300, 200, rng=3)
    bound = np.sqrt(6 / 500)
    weight = layer.weight.data
    assert weight.dtype == np.float32 and 0.99 * bound < np.abs(weight).max() <= bound * (1 + 1e-6)
    assert abs(weight.std() - bound / np.sqrt(3)) < 0.01 * bound and not layer.bias.data.any()
    np.testing.assert_array_equal(nn.Linear(300, 200, rng=3).weight.data, weight)
    assert [n for n, _ in nn.Linear(2, 2, bias=False).named_parameters()] == ["weight"]
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    nn.MLP([3, 3, 3])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("bias", [True, False])
def test_linear_gradients(bias):
    layer = nn.Linear(5, 3, bias, rng=0, dtype=np.float64)
    x = data(4, 5)
    np.testing.assert_allclose(layer(x).data, x @ layer.weight.data)
    assert check_module(layer, x) < 1e-6


@pytest.mark.parametrize("activation", ["relu", "elu", "prelu", "tanh"])
@pytest.mark.parametrize("norm", [True, False])
def test_mlp_gradients(activation, norm):
    model = nn.MLP([4, 6, 5, 3], activation, 0.3, norm=norm, rng=1, dtype=np.float64).set_step_key(7)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data += 0.3  # a row that is dropped whole must not stand on the kink at 0
    assert check_module(model, data(6, 4)) < 1e-6
    assert sum(isinstance(m, nn.Dropout) for m in model.modules()) == 2


@pytest.mark.parametrize("layer", [nn.LayerNorm(5, dtype=np.float64), nn.PReLU(dtype=np.float64),
                                   nn.PReLU(5, dtype=np.float64), nn.ELU(0.7), nn.ReLU(), nn.Tanh(), nn.GELU(),
                                   nn.LeakyReLU(0.1), nn.Sigmoid(), nn.BatchNorm(5, dtype=np.float64),
                                   nn.ProjectionHead(5, 4, 3, rng=0, dtype=np.float64)], ids=repr)
def test_other_layers_gradients(layer):
    assert check_module(layer, data(6, 5)) < 1e-6


def test_projection_head_is_linear_elu_linear():
    head = nn.ProjectionHead(4, 6, 3, rng=0, dtype=np.float64)
    z = data(5, 4)
    hidden = z @ head.fc1.weight.data + head.fc1.bias.data
    hidden = np.where(hidden > 0, hidden, np.expm1(hidden))
    np.testing.assert_allclose(head(z).data, hidden @ head.fc2.weight.data)


def test_repr_shows_the_tree():
    assert repr(nn.Sequential(nn.Linear(2, 3, bias=False), nn.MLP([3, 1]))) == (
        "Sequential(\n  (layers.0): Linear(2, 3, bias=False)\n  (layers.1): MLP(\n    (layers.0): Linear(3, 1)\n  )\n)")


def test_bad_arguments():
    with pytest.raises(ValueError, match="in_features must be at least 1"):
        nn.Linear(0, 3)
    with pytest.raises(ValueError, match="dims needs"):
        nn.MLP([3])
    with pytest.raises(ValueError, match="activation must be one of"):
        nn.MLP([3, 3], "swish")
    with pytest.raises(ValueError, match="p must be"):
        nn.Dropout(-0.1)
    with pytest.raises(ValueError, match="reduce must be one of"):
        nn.SAGEConv(3, 3, "min")
    with pytest.raises(NotImplementedError, match="Module"):
        nn.Module()(1)


def test_a_module_gives_the_same_bits_on_any_number_of_threads():
    x = np.random.default_rng(0).normal(size=(20_000, 20)).astype(np.float32)

    def run():
        model = nn.MLP([20, 32, 8], "elu", 0.2, norm=True, rng=0).set_step_key(1)
        _, grad = nn.flatten_parameters(model)
        y = model(x)
        y.mean().backward()
        return y.data, grad

    with working_threads(1):
        one = run()
    with working_threads(2):
        two = run()
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
