"""Optimizers beside vectorised numpy and the memory's bandwidth."""
import numpy as np

from asv_bench.peers import Case, comparison


def numpy_adam(param, grad, m, v, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, block=1 << 14):
    """A step function, in blocks that stay in cache."""
    steps, scratch = 0, np.empty(block, param.dtype)

    def step():
        nonlocal steps
        steps += 1
        rate, root = lr / (1 - beta1**steps), 1 / np.sqrt(1 - beta2**steps)
        for start in range(0, len(param), block):
            at = slice(start, start + block)
            g, t = grad[at], scratch[:len(grad[at])]
            m[at] *= beta1
            m[at] += np.multiply(g, 1 - beta1, out=t)
            v[at] *= beta2
            np.multiply(g, g, out=t)
            v[at] += np.multiply(t, 1 - beta2, out=t)
            np.sqrt(v[at], out=t)
            t *= float(root)
            t += eps
            np.divide(m[at], t, out=t)
            t *= rate
            param[at] -= t
        return param
    return step


def torch_step(kind, param, grad, clip=None, **options):
    """A step function of a PyTorch optimizer on shared memory; None where there is no PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    tensor = torch.from_numpy(param).requires_grad_()
    tensor.grad = torch.from_numpy(grad)
    optimizer = getattr(torch.optim, kind)([tensor], lr=1e-3, fused=True, **options)

    def step():
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([tensor], clip)
        optimizer.step()
        return param
    return step


def same_parameters(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def copy_of(n):
    """A copy that moves as many bytes as ``n`` reads or writes of float32."""
    source = np.random.default_rng(0).standard_normal(n // 2, np.float32)
    target = np.zeros_like(source)
    return lambda: np.copyto(target, source)


class Weights:
    """Parameters, their gradient, and copies for the other side."""

    def __init__(self, n):
        self.param, self.grad = np.random.default_rng(0).standard_normal((2, n), np.float32)

    def ours(self, kind, **options):
        param = self.param.copy()
        optimizer = kind(param, lr=1e-3, **options)

        def step():
            optimizer.step(self.grad)
            return param
        return step


@comparison
def adam(quick, stack):
    from gnncy.optim import Adam
    n = 200_000 if quick else 10_000_000
    weights = Weights(n)
    setting = f"{n / 1e6:g} M parameters"
    m, v = np.zeros((2, n), np.float32)
    yield Case(setting, weights.ours(Adam), "numpy, in blocks", numpy_adam(weights.param.copy(), weights.grad, m, v),
               asked=3.6, same=same_parameters)
    # Four arrays read and three written.
    yield Case(setting, weights.ours(Adam), "limit: a copy of as many bytes", copy_of(7 * n), asked=0.8)
    # PyTorch does not look whether a gradient is finite; ours does unless told otherwise: an eighth array to read.
    for detail, ours, theirs, asked in [(", gradient not checked", {"nonfinite": "ignore"}, {}, 1),
                                        (", gradient checked by ours alone", {}, {}, 0.8),
                                        (", AMSGrad", {"amsgrad": True, "nonfinite": "ignore"}, {"amsgrad": True}, 1),
                                        (", clipped by norm", {"max_norm": 1.0}, {"clip": 1.0}, 1)]:
        fused = torch_step("Adam", weights.param.copy(), weights.grad.copy(), **theirs)
        if fused is not None:
            yield Case(setting + detail, weights.ours(Adam, **ours), "torch fused", fused, asked=asked,
                       same=same_parameters)


def numpy_sgd(param, grad, buffer=None, lr=1e-3, momentum=0.9, block=1 << 14):
    """A step function, in blocks that stay in cache."""
    scratch = np.empty(block, param.dtype)

    def step():
        for start in range(0, len(param), block):
            at = slice(start, start + block)
            t = scratch[:len(grad[at])]
            d = grad[at]
            if buffer is not None:
                buffer[at] *= momentum
                buffer[at] += d
                d = buffer[at]
            param[at] -= np.multiply(d, lr, out=t)
        return param
    return step


@comparison
def sgd(quick, stack):
    from gnncy.optim import SGD
    n = 200_000 if quick else 10_000_000
    weights = Weights(n)
    for detail, options, arrays in [("", {}, 3), (", momentum", {"momentum": 0.9}, 5)]:
        setting = f"{n / 1e6:g} M parameters{detail}"
        buffer = np.zeros(n, np.float32) if options else None
        yield Case(setting, weights.ours(SGD, **options), "numpy, in blocks",
                   numpy_sgd(weights.param.copy(), weights.grad, buffer), asked=1, same=same_parameters)
        yield Case(setting, weights.ours(SGD, **options), "limit: a copy of as many bytes", copy_of(arrays * n),
                   asked=0.8)
        fused = torch_step("SGD", weights.param.copy(), weights.grad.copy(), **options)
        if fused is not None:
            yield Case(f"{setting}, gradient not checked", weights.ours(SGD, nonfinite="ignore", **options),
                       "torch fused", fused, asked=1, same=same_parameters)


def numpy_rows(table, rows, grads, total, lr=1e-2, eps=1e-10):
    """A step function of row-wise Adagrad on distinct rows."""
    def step():
        total[rows] += np.einsum("nd,nd->n", grads, grads) / grads.shape[1]
        table[rows] -= grads * (lr / (np.sqrt(total[rows]) + eps))[:, None]
        return table
    return step


@comparison
def row_adagrad(quick, stack):
    from gnncy.optim import RowAdagrad
    n, k, d = (50_000, 2500, 64) if quick else (1_000_000, 50_000, 64)
    rng = np.random.default_rng(0)
    table, grads = rng.standard_normal((n, d), np.float32), rng.standard_normal((k, d), np.float32)
    rows = rng.permutation(n)[:k]
    mine = table.copy()
    optimizer = RowAdagrad(mine)

    def ours():
        optimizer.step(rows, grads)
        return mine

    yield Case(f"{k} rows of {n / 1e6:g} M x {d}", ours, "numpy",
               numpy_rows(table, rows, grads, np.zeros(n, np.float32)), asked=2, same=same_parameters)
