"""Gradient compression beside numpy, PyTorch, the memory's bandwidth and the reference's scheme."""
import multiprocessing

import numpy as np

from asv_bench.peers import Case, measure, table
from asv_bench.peers.optim import copy_of


def numpy_pack(x, block=1 << 14):
    """Quantise at 0.7 mean |x| and pack to two planes, in blocks that stay in cache."""
    def pack():
        planes, scales = np.empty((2, len(x) // 8), np.uint8), []
        for start in range(0, len(x), block):
            part = x[start:start + block]
            size = np.abs(part)
            threshold = np.float32(0.7) * size.mean()
            at = slice(start // 8, (start + len(part)) // 8)
            planes[0, at] = np.packbits(part > threshold, bitorder="little")
            planes[1, at] = np.packbits(part < -threshold, bitorder="little")
            scales.append(size.mean(where=size > threshold))
        return planes, scales
    return pack


def torch_pack(x, block=4096):
    """The same compiled by PyTorch, whole blocks alone; None where there is no PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    places = 1 << torch.arange(8)

    @torch.compile
    def pack(rows):
        size = rows.abs()
        threshold = 0.7 * size.mean(1, keepdim=True)
        kept = size > threshold
        scale = (size * kept).sum(1) / kept.sum(1)
        return [((kept & sign).reshape(-1, 8) * places).sum(1).to(torch.uint8) for sign in (rows > 0, rows < 0)], scale

    rows = torch.from_numpy(x[:len(x) // block * block].reshape(-1, block))
    return lambda: pack(rows)


def numpy_axpy(planes, scales, y, block=1 << 14):
    """Unpack and add, in blocks that stay in cache."""
    def axpy():
        for start, scale in zip(range(0, len(y), block), scales, strict=True):
            part = y[start:start + block]
            plus, minus = (np.unpackbits(plane[start // 8:(start + len(part)) // 8], bitorder="little").view(np.int8)
                           for plane in planes)
            part += np.float32(0.001) * scale * (plus - minus)
        return y
    return axpy


def speed(n):
    from gnncy.optim.compression import ternary_quantize
    x, y = np.random.default_rng(0).standard_normal((2, n), np.float32)
    packed, added = ternary_quantize(x), ternary_quantize(x)
    mine = y.copy()
    setting = f"quantise and pack {n / 1e6:g} M"
    yield Case(setting, lambda: ternary_quantize(x, out=packed), "numpy, in blocks", numpy_pack(x), asked=5)
    compiled = torch_pack(x)
    if compiled is not None:
        yield Case(setting, lambda: ternary_quantize(x, out=packed), "torch.compile", compiled, asked=5)
    yield Case(setting, lambda: ternary_quantize(x, out=packed), "limit: a copy of as many bytes", copy_of(n))
    setting = f"unpack and add {n / 1e6:g} M"
    yield Case(setting, lambda: added.add_to(mine, 0.001), "numpy, in blocks",
               numpy_axpy(*numpy_pack(x)(), y.copy()), asked=5)
    yield Case(setting, lambda: added.add_to(mine, 0.001), "limit: a copy of as many bytes", copy_of(2 * n), asked=0.5)


def held(kind, n, queue):
    """Bytes by which the process grows while it adds up eight gradients; the gradient is there before."""
    from gnncy._memory import rss, trim
    from gnncy.optim.compression import TernaryGradientAccumulator
    gradient = np.random.default_rng(0).standard_normal(n, np.float32)
    TernaryGradientAccumulator({"w": (10_000,)}).accumulate({"w": gradient[:10_000]})  # its code is loaded
    trim()
    before = rss()
    if kind == "float32":
        total = np.zeros(n, np.float32)
        for _ in range(8):
            total += gradient
    else:
        total = TernaryGradientAccumulator({"w": (n,)}, 8)
        for _ in range(8):
            total.accumulate({"w": gradient})
    trim()
    queue.put(rss() - before)


def memory(n):
    """Measured in processes of their own."""
    context = multiprocessing.get_context("spawn")
    grown = []
    for kind in ("ternary", "float32"):
        queue = context.SimpleQueue()
        process = context.Process(target=held, args=(kind, n, queue))
        process.start()
        grown.append(queue.get())
        process.join()
    return grown


@table
def compression(quick, threads):
    from asv_bench.compression_training import examples
    from gnncy.optim.compression import (
        Mod3VSACompressor,
        TernaryCompressor,
        TernaryGradientAccumulator,
        VSAGradientCompressor,
        similarity,
    )

    def row(setting, ours, peer, theirs, unit, ratio, asked):
        return {"setting": setting, "ours": ours, "peer": peer, "peer_value": theirs, "unit": unit,
                "ratio": float(f"{ratio:.3g}"), "asked": asked}

    n = 500_000 if quick else 10_000_000
    for case in speed(n // 16384 * 16384):
        ours, theirs = measure(case, threads, 5)
        yield row(case.setting, case.value(ours), case.peer, case.value(theirs), case.unit, theirs / ours, case.asked)
        if case.asked is None and not quick:
            yield row(case.setting, case.value(ours), "asked: 2.5 ms, twice", 5.0, "ms", 5e-3 / ours, 1)

    ours, theirs = memory(n)
    yield row(f"sum of 8 gradients of {n / 1e6:g} M, process memory", ours / 1e6, "float32", theirs / 1e6, "MB",
              theirs / ours, None if quick else 4)
    message = TernaryCompressor(error_feedback=False).compress({"w": np.ones(n, np.float32)})
    yield row(f"message of {n / 1e6:g} M", message.nbytes / 1e6, "float32", 4 * n / 1e6, "MB", 4 * n / message.nbytes,
              15.9)

    rng = np.random.default_rng(0)
    for name, gradients in (("equal", [rng.standard_normal(100_000, np.float32)] * 8),
                            ("independent", list(rng.standard_normal((8, 100_000), np.float32)))):
        accumulator = TernaryGradientAccumulator({"w": (100_000,)}, 8)
        for gradient in gradients:
            accumulator.accumulate({"w": gradient})
        total = np.sum(gradients, axis=0)
        error = np.linalg.norm(accumulator.get_accumulated("sum")["w"] - total) / np.linalg.norm(total)
        yield row(f"error of the sum of 8 {name} gradients", float(f"{error:.3g}"), "asked", 0.3, "relative",
                  0.3 / error, 1)

    mixed = {"8192": rng.standard_normal(8192, np.float32), "64": rng.standard_normal(64, np.float32),
             "2048": rng.standard_normal(2048, np.float32)}
    for name, gradients in ({"tensors of 8192, 64 and 2048": mixed} | examples(None)).items():
        whole = np.concatenate([x.reshape(-1) for x in gradients.values()])
        reference, ours = Mod3VSACompressor(), VSAGradientCompressor(0.775)
        found = []
        for compressor in (ours, reference):
            message = compressor.compress(gradients)
            back = compressor.decompress(message)
            found.append((similarity(np.concatenate([back[key].reshape(-1) for key in gradients]), whole),
                          message.nbytes))
        yield row(f"VSA, {name}: cosine at {found[0][1]} bytes", round(found[0][0], 3),
                  f"reference at {found[1][1]} bytes", round(found[1][0], 3), "cosine", found[0][0] / found[1][0],
                  float(f"{0.75 / found[1][0]:.3g}"))
