"""Losses and their gradients beside vectorised numpy, scipy, torch where it is installed, and bare matrix products."""
import subprocess
import sys

import numpy as np

from asv_bench.peers import Case, comparison

TAU = 0.2


def unit_rows(x):
    norm = np.sqrt(np.einsum("...d,...d->...", x, x))[..., None]
    return x / norm, norm


def through_norm(unit, norm, grad):
    return (grad - unit * np.einsum("nd,nd->n", unit, grad)[:, None]) / norm


def numpy_own_negatives(anchors, positives, negatives):
    """Loss and gradients; no array as big as the negatives but their gradient and one temporary."""
    n = len(anchors)
    (a, a_norm), (p, p_norm) = unit_rows(anchors), unit_rows(positives)
    inverse = 1 / np.sqrt(np.einsum("nkd,nkd->nk", negatives, negatives))
    cosine = np.matmul(negatives, a[:, :, None])[:, :, 0] * inverse
    logits = np.concatenate([np.einsum("nd,nd->n", a, p)[:, None], cosine], axis=1) / np.float32(TAU)
    top = logits.max(axis=1, keepdims=True)
    e = np.exp(logits - top)
    total = e.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) + top[:, 0] - logits[:, 0], dtype=np.float64))
    e /= total * np.float32(n * TAU)
    to_positive, to_negative = e[:, :1] - np.float32(1 / (n * TAU)), e[:, 1:]
    scaled = to_negative * inverse
    grad_a = to_positive * p + np.matmul(scaled[:, None, :], negatives)[:, 0]
    grad_negatives = scaled[:, :, None] * a[:, None, :]
    grad_negatives -= (scaled * cosine * inverse)[:, :, None] * negatives
    return loss, through_norm(a, a_norm, grad_a), through_norm(p, p_norm, to_positive * a), grad_negatives


def numpy_in_batch(anchors, positives):
    """Loss and gradients, working in one matrix of all cosines."""
    n = len(anchors)
    (a, a_norm), (p, p_norm) = unit_rows(anchors), unit_rows(positives)
    e = a @ p.T
    e *= np.float32(1 / TAU)
    positive = e.diagonal().copy()
    top = e.max(axis=1)
    np.exp(np.subtract(e, top[:, None], out=e), out=e)
    total = e.sum(axis=1)
    loss = float(np.mean(np.log(total) + top - positive, dtype=np.float64))
    e *= (1 / (total * np.float32(n * TAU)))[:, None]
    e[np.arange(n), np.arange(n)] -= np.float32(1 / (n * TAU))
    return loss, through_norm(a, a_norm, e @ p), through_norm(p, p_norm, e.T @ a)


def numpy_margin(z, left, right, similar, margin, incidence):
    """Loss and gradient; the gradients of the pairs are added to their nodes by a sparse product."""
    difference = z[left] - z[right]
    distance = np.sqrt(np.einsum("pd,pd->p", difference, difference))
    gap = np.maximum(margin - distance, 0)
    loss = float(np.mean(np.where(similar, distance * distance, gap * gap), dtype=np.float64))
    scale = np.where(similar, 2, -2 * gap / np.maximum(distance, 1e-12)) / np.float32(len(left))
    difference *= scale[:, None].astype(np.float32)
    return loss, incidence @ difference


def with_torch(comparison):
    """torch, or None with a word on what is left out."""
    try:
        import torch
    except ImportError:
        print(f"{comparison}: no comparison with torch, which is not installed", file=sys.stderr)
        return None
    return torch


def torch_margin(z, left, right, similar, margin):
    """The same as a call of torch.compile and autograd; None without torch."""
    torch = with_torch("margin loss")
    if torch is None:
        return None
    left, right, similar = (torch.from_numpy(x) for x in (left, right, similar))
    rows = torch.from_numpy(z).clone().requires_grad_()

    @torch.compile
    def loss(rows):
        distance = (rows[left] - rows[right]).square().sum(1).clamp_min(1e-24).sqrt()
        return torch.where(similar, distance.square(), (margin - distance).clamp_min(0).square()).mean()

    def call():
        rows.grad = None
        out = loss(rows)
        out.backward()
        return out.item(), rows.grad.numpy()
    return call


def torch_own_negatives(*arrays):
    """Loss and gradients as a call of torch.compile and autograd; None without torch."""
    torch = with_torch("infonce")
    if torch is None:
        return None
    tensors = [torch.from_numpy(x).clone().requires_grad_() for x in arrays]

    @torch.compile
    def loss(anchors, positives, negatives):
        a, p, k = (torch.nn.functional.normalize(x, dim=-1) for x in (anchors, positives, negatives))
        logits = torch.cat([(a * p).sum(1, keepdim=True), torch.bmm(k, a[:, :, None])[:, :, 0]], 1) / TAU
        return (torch.logsumexp(logits, 1) - logits[:, 0]).mean()

    def call():
        for x in tensors:
            x.grad = None
        out = loss(*tensors)
        out.backward()
        return out.item(), *(x.grad.numpy() for x in tensors)
    return call


def same_loss(ours, theirs):
    loss, grads = ours
    np.testing.assert_allclose(loss, theirs[0], rtol=1e-4)
    for mine, other in zip((grads.anchors, grads.positives, grads.negatives), theirs[1:], strict=False):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-3 * np.abs(other).max())


def same_grad(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=1e-3 * np.abs(theirs[1]).max())


def in_batch(n, d, seed=0):
    """Arguments of an in-batch loss, and a call of the three products it cannot do without, a block at a time."""
    a, p = np.random.default_rng(seed).standard_normal((2, n, d), np.float32)
    block = min(n, max(512, (1 << 24) // n))
    logits, grad_a, grad_p = np.empty((block, n), np.float32), np.empty_like(a), np.empty_like(p)

    def products():
        for first in range(0, n, block):
            rows = a[first:first + block]
            np.matmul(rows, p.T, out=logits)
            np.matmul(logits, p, out=grad_a[first:first + block])
            np.matmul(logits.T, rows, out=grad_p)
    return a, p, products


@comparison
def losses(quick, stack):
    yield from infonce(quick, stack)
    yield from pairs(quick, stack)
    yield from laplacian(quick, stack)


@comparison
def infonce(quick, stack):
    from gnncy.losses import info_nce
    rng = np.random.default_rng(0)

    def rows(*shape):
        return rng.standard_normal(shape, np.float32)

    for n, k, d, asked in [(64, 16, 128, None)] if quick else [(256, 64, 128, 5), (1024, 128, 128, 6)]:
        a, p, negatives = rows(n, d), rows(n, d), rows(n, k, d)
        out = np.empty_like(negatives)  # a training loop gives the same array at every step
        setting = f"loss and gradients, {n} anchors, {k} negatives of each, {d}"

        def ours():
            return info_nce(a, p, negatives, temperature=TAU, out=out)  # noqa: B023

        yield Case(setting, ours, "numpy", lambda: numpy_own_negatives(a, p, negatives), asked=asked,  # noqa: B023
                   same=same_loss)
        if (theirs := torch_own_negatives(a, p, negatives)) is not None:
            yield Case(setting, ours, "torch.compile", theirs, asked=asked, same=same_loss)

    for n, d in [(256, 64)] if quick else [(2048, 128), (4096, 256)]:
        a, p, products = in_batch(n, d)
        setting = f"loss and gradients, in batch, {n} x {d}"

        def ours(a=a, p=p, symmetric=False):
            return info_nce(a, p, temperature=TAU, symmetric=symmetric)

        yield Case(setting, ours, "numpy", lambda: numpy_in_batch(a, p), asked=1, same=same_loss)  # noqa: B023
        yield Case(setting, ours, "limit: the three bare products", products, asked=0.83)
        yield Case(f"{setting}, both directions", lambda: ours(symmetric=True),  # noqa: B023
                   "numpy, one direction after the other",
                   lambda: (numpy_in_batch(a, p), numpy_in_batch(p, a)), asked=1.6)  # noqa: B023


PEAK = """
import numpy as np
from gnncy._memory import peak_rss, reset_peak, rss
from gnncy.losses import info_nce
a, p = np.random.default_rng(0).standard_normal((2, {n}, {d}), np.float32)
info_nce(a[:512], p[:512])
before = rss()
reset_peak()
info_nce(a, p, symmetric={symmetric})
print((peak_rss() - before) / 1e6)
"""


@comparison
def infonce_large(quick, stack):
    """Minutes: ask for few rounds. The peak is what a call takes beyond its arguments, in a process of its own."""
    from gnncy.losses import info_nce
    n, d = (4096, 64) if quick else (32_768, 256)
    a, p, products = in_batch(n, d)
    for symmetric in (False, True):
        peak = float(subprocess.run([sys.executable, "-c", PEAK.format(n=n, d=d, symmetric=symmetric)], check=True,
                                    capture_output=True, text=True).stdout)
        sides = ", both directions" if symmetric else ""
        yield Case(f"loss and gradients, in batch, {n} x {d}{sides}, peak {peak:.0f} MB",
                   lambda: info_nce(a, p, temperature=TAU, symmetric=symmetric),  # noqa: B023
                   "limit: the three bare products", products, asked=0.71 * (0.75 if symmetric else 1))


def random_pairs(quick):
    n, count, d = (5_000, 20_000, 64) if quick else (200_000, 1_000_000, 64)
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.integers(0, n, (2, count + count // 50)), axis=0)
    chosen = np.unique((low * n + high)[low != high])  # each pair once, then in any order
    left, right = np.divmod(rng.permutation(chosen)[:count], n)
    return (left, right), rng.random(count) < 0.5, rng.standard_normal((n, d), np.float32)


@comparison
def pairs(quick, stack):
    import scipy.sparse as sp

    from gnncy.losses import LocalContrastiveLoss, Pairs
    (left, right), similar, z = random_pairs(quick)
    count, margin = len(left), 10.0
    loss_fn, prepared = LocalContrastiveLoss(margin), Pairs(left, right, similar, n_nodes=len(z))
    every = np.arange(count)
    ones = np.ones(count, np.float32)
    incidence = sp.csr_array((np.concatenate([ones, -ones]), (np.concatenate([left, right]), np.tile(every, 2))),
                             shape=(len(z), count))
    setting = f"margin loss and gradient, {count / 1e6:g} M pairs, {len(z) / 1e3:g} k nodes, {z.shape[1]}"
    peers = [("numpy, scipy for the scatter", lambda: numpy_margin(z, left, right, similar, margin, incidence), 3)]
    compiled = torch_margin(z, left, right, similar, margin)
    if compiled is not None:
        peers.append(("torch.compile", compiled, 1.5))
    for peer, theirs, asked in peers:
        yield Case(setting, lambda: loss_fn(z, (left, right), similar), peer, theirs, asked=asked, same=same_grad)
        yield Case(f"{setting}, prepared", lambda: loss_fn(z, prepared), peer, theirs, asked=asked, same=same_grad)


@comparison
def laplacian(quick, stack):
    import scipy.sparse as sp
    from scipy.sparse import csgraph

    from gnncy.graph import as_csr, undirected
    from gnncy.losses import SpectralRegularization
    (left, right), _, z = random_pairs(quick)
    graph = undirected(sp.csr_array((np.ones(len(left), np.float32), (left, right)), shape=(len(z), len(z))))
    for kind in ("combinatorial", "symmetric"):
        matrix = as_csr(csgraph.laplacian(graph, normed=kind == "symmetric"))
        loss_fn = SpectralRegularization(kind, scale=None)

        def theirs(matrix=matrix):
            product = matrix @ z
            return float(np.vdot(z, product)), 2 * product

        setting = f"{kind} Laplacian, {graph.nnz / 2e6:.3g} M edges, {len(z) / 1e3:g} k nodes, {z.shape[1]}"
        yield Case(setting, lambda: loss_fn(z, graph), "scipy L @ Z, L built before, and the trace",  # noqa: B023
                   theirs, asked=1.3, same=same_grad)
        yield Case(setting, lambda: loss_fn(z, graph), "scipy L @ Z alone",  # noqa: B023
                   lambda: matrix @ z, asked=1.3)  # noqa: B023
