import numpy as np

from gnncy import nn


def test_residual_mlp_is_its_formula_and_its_gradients_agree():
    model = nn.ResidualMLP(5, 7, 3, rng=0, dtype=np.float64)
    x = np.random.default_rng(1).standard_normal((6, 5))
    a, b, c, s = (p.data for p in (model.first.weight, model.first.bias, model.second.weight, model.skip.weight))
    np.testing.assert_allclose(model(x).data, x @ s + np.maximum(x @ a + b, 0) @ c)

    def through(weight_a, weight_c, weight_s):
        model.first.weight, model.second.weight, model.skip.weight = weight_a, weight_c, weight_s
        return nn.mean(model(x) * model(x))
    assert nn.check_gradient(through, [a.copy(), c.copy(), s.copy()]) < 1e-6


def test_the_second_layer_begins_small():
    model = nn.ResidualMLP(64, 64, 64, rng=0)
    assert model.second.weight.data.std() < 0.2 * model.skip.weight.data.std()


def test_projected_shows_the_head_to_training_only():
    model = nn.Projected(nn.Linear(4, 3, rng=0), nn.ProjectionHead(3, 6, 3, rng=0))
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(model(x).data, model.head(model.encoder(x)).data)
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "head"}
