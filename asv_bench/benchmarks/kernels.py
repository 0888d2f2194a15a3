"""Float kernels at each SIMD level beside numpy: a lost vectorisation shows as a step."""

import numpy as np

from gnncy import _kernels

from . import sized


class Rows:
    params = [["numpy", *_kernels.AVAILABLE], [16, 128, 1024]]
    param_names = ["by", "width"]

    def setup(self, by, width):
        n = sized(4_000_000, 200_000) // width
        self.x = np.random.default_rng(0).standard_normal((n, width)).astype(np.float32)
        self.grad = self.x[::-1].copy()
        self.out, self.norm = np.empty_like(self.x), np.empty(n, np.float32)
        if by == "numpy":
            self.normalise, self.normalise_grad = self.numpy_normalise, self.numpy_normalise_grad
        else:
            rows = _kernels.at_level(by, "rows")
            self.normalise, self.normalise_grad = rows.normalise, rows.normalise_grad
        self.normalise(self.x, self.out, self.norm)
        self.unit = self.out.copy()

    @staticmethod
    def numpy_normalise(x, out, norm):
        np.sqrt(np.einsum("ij,ij->i", x, x), out=norm)
        np.divide(x, norm[:, None], out=out)

    @staticmethod
    def numpy_normalise_grad(unit, norm, grad, out):
        along = np.einsum("ij,ij->i", unit, grad)
        np.subtract(grad, unit * along[:, None], out=out)
        np.divide(out, norm[:, None], out=out)

    def time_normalise(self, by, width):
        self.normalise(self.x, self.out, self.norm)

    def time_normalise_grad(self, by, width):
        self.normalise_grad(self.unit, self.norm, self.grad, self.out)
