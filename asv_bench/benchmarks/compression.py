"""Ternary vectors, sums of them, and compressors: passes over flat memory."""
import numpy as np

from gnncy._threads import working_threads
from gnncy.optim import compression

from . import sized

COMPRESSORS = {"ternary": compression.TernaryCompressor, "sign": compression.SignCompressor,
               "top-k": compression.TopKCompressor, "count sketch": compression.CountSketchCompressor,
               "VSA": compression.VSAGradientCompressor}


class Ternary:
    params = [["twn", "terngrad"], [1, 2], [4096, None]]
    param_names = ["rule", "threads", "block"]

    def setup(self, rule, threads, block):
        self.x, self.y = np.random.default_rng(0).standard_normal((2, sized(10_000_000, 500_000)), np.float32)
        self.packed = compression.ternary_quantize(self.x, rule, block=block)

    def time_quantize(self, rule, threads, block):
        with working_threads(threads):
            compression.ternary_quantize(self.x, rule, block=block)

    def time_add_to(self, rule, threads, block):
        with working_threads(threads):
            self.packed.add_to(self.y, 1e-3)

    def time_dot(self, rule, threads, block):
        self.packed.dot(self.packed)


class Accumulate:
    params = [["twn", "terngrad"], [1, 2]]
    param_names = ["rule", "threads"]

    def setup(self, rule, threads):
        n = sized(10_000_000, 500_000)
        self.gradient = {"w": np.random.default_rng(0).standard_normal(n, np.float32)}
        self.accumulator = compression.TernaryGradientAccumulator({"w": (n,)}, rule=rule)
        self.accumulator.accumulate(self.gradient)

    def time_accumulate(self, rule, threads):
        with working_threads(threads):
            self.accumulator.accumulate(self.gradient)

    def time_get_accumulated(self, rule, threads):
        with working_threads(threads):
            self.accumulator.get_accumulated()

    def track_bytes_a_parameter(self, rule, threads):
        return self.accumulator.nbytes / self.gradient["w"].size


class Compress:
    params = [list(COMPRESSORS)]
    param_names = ["kind"]

    def setup(self, kind):
        self.gradient = {"w": np.random.default_rng(0).standard_normal(sized(1_000_000, 50_000), np.float32)}
        self.compressor = COMPRESSORS[kind]()
        self.message = self.compressor.compress(self.gradient)

    def time_compress(self, kind):
        self.compressor.compress(self.gradient)

    def time_decompress(self, kind):
        self.compressor.decompress(self.message)

    def track_cosine(self, kind):
        message = COMPRESSORS[kind]().compress(self.gradient)
        return compression.similarity(self.compressor.decompress(message)["w"], self.gradient["w"])
