"""Logistic regression, regularised, on rows in memory: the same bits for any number of threads."""
import numpy as np
from scipy import sparse

from gnncy._linalg import matmul

CLASSES = 16  # whose products with a sparse matrix are held at a time


def class_scores(rows, parameters: np.ndarray) -> np.ndarray:
    """``x_i W + b`` for dense or CSR rows; ``parameters`` is W above b."""
    scores = rows @ parameters[:-1] if sparse.issparse(rows) else matmul(rows, parameters[:-1])
    scores += parameters[-1]
    return scores


class Logistic:
    """C sum_i w_i -log softmax(x_i W + b)[y_i] + |W|^2 / 2, minimised by Newton's method.

    ``rows`` are float64, dense or CSR, ``labels`` 0 .. ``n_classes - 1``, ``weights`` 1 by default. Newton's equation
    is solved by conjugate gradients with the Hessian's diagonal as preconditioner, so that a handful of matrices of the
    parameters' size is all that is held. It is solved for rows from which their mean is thought away: that changes b
    alone, and rows that are much alike take several times fewer steps.
    """

    def __init__(self, rows, labels: np.ndarray, n_classes: int, weights: np.ndarray | None = None) -> None:
        self.weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
        self.rows, self.transposed = rows, rows.T.tocsr() if sparse.issparse(rows) else rows.T
        self.at = np.arange(len(labels)), labels
        self.mean = np.asarray(self.weights @ rows).ravel() / self.weights.sum()
        self.centred = np.zeros((rows.shape[1] + 1, n_classes))  # the parameters for rows without their mean
        share = np.bincount(labels, self.weights, n_classes)
        # The best constant guess is the logarithm of the classes' shares.
        self.centred[-1] = np.log(np.maximum(share / share.sum(), 1e-12))
        self._forward(1.0)
        self.first = float(np.linalg.norm(self._gradient(1.0)))  # at W = 0 the gradient is in proportion to C
        if self.first <= 1e-9 * self.weights.sum():  # one class only, or rows that tell nothing
            self.first = 0.0

    @property
    def parameters(self) -> np.ndarray:
        """W (d, k) above b (1, k), a new matrix."""
        out = self.centred.copy()
        out[-1] -= self.mean @ out[:-1]
        return out

    def fit(self, C: float, max_iter: int, tolerance: float = 1e-3) -> None:
        """Go on from the parameters as they are until the gradient is ``tolerance`` of that at the first ones."""
        w = self.centred
        value = self._forward(C)
        for _ in range(max_iter):
            gradient = self._gradient(C)
            norm = np.linalg.norm(gradient) / (C * self.first) if self.first else 0.0
            if norm <= tolerance:
                break
            step = self._newton_step(gradient, C, min(0.5, norm**0.5))
            slope, length = np.vdot(self._gradient(C), step), 1.0
            w += step
            while (new := self._forward(C)) > value + 1e-4 * length * slope and length > 1e-6:
                length /= 2
                w -= length * step
            value = new

    def _scores(self, w):
        scores = class_scores(self.rows, w)
        scores -= self.mean @ w[:-1]
        return scores

    def _forward(self, C):
        """The objective; leaves the probabilities of the classes."""
        w = self.centred
        scores = self._scores(w)
        scores -= scores.max(axis=1, keepdims=True)
        picked = np.sum(self.weights * scores[self.at])
        np.exp(scores, out=scores)
        total = scores.sum(axis=1, keepdims=True)
        scores /= total
        self.probability = scores
        return C * (np.sum(self.weights * np.log(total[:, 0])) - picked) + 0.5 * np.vdot(w[:-1], w[:-1])

    def _gradient(self, C):
        residual = self.probability.copy()
        residual[self.at] -= 1
        return self._back(residual, self.centred, C, np.empty_like(self.centred))

    def _hessian_product(self, v, C, out):
        z = self._scores(v)
        z -= np.einsum("ij,ij->i", z, self.probability)[:, None]
        z *= self.probability
        return self._back(z, v, C, out)

    def _back(self, residual, w, C, out):
        """C (X - mean)^T R + W above the column sums of C R."""
        residual *= (C * self.weights)[:, None]
        residual.sum(axis=0, out=out[-1])
        if sparse.issparse(self.transposed):
            for j in range(0, residual.shape[1], CLASSES):
                out[:-1, j:j + CLASSES] = self.transposed @ residual[:, j:j + CLASSES]
        else:
            matmul(self.transposed, residual, out=out[:-1])
        for j in range(0, residual.shape[1], CLASSES):
            out[:-1, j:j + CLASSES] -= self.mean[:, None] * out[-1, j:j + CLASSES]
        out[:-1] += w[:-1]
        return out

    def _diagonal(self, C):
        variance = self.probability * (1 - self.probability)
        variance *= (C * self.weights)[:, None]
        out = np.empty_like(self.centred)
        total = variance.sum(axis=0)
        if sparse.issparse(self.transposed):
            mean = self.mean[:, None]
            squares = self.transposed.power(2)
            for j in range(0, variance.shape[1], CLASSES):
                part = np.s_[:, j:j + CLASSES]
                out[:-1][part] = squares @ variance[part] + mean * (mean * total[j:j + CLASSES]
                                                                    - 2 * (self.transposed @ variance[part]))
            np.maximum(out[:-1], 0, out=out[:-1])  # rounding
        else:
            for j in range(0, len(out) - 1, 64):
                centred = self.transposed[j:j + 64] - self.mean[j:j + 64, None]
                matmul(centred**2, variance, out=out[j:min(j + 64, len(out) - 1)])
        out[:-1] += 1
        out[-1] = np.maximum(total, 1e-12)
        return out

    def _newton_step(self, gradient, C, reduction):
        """Conjugate gradients until the residual is ``reduction`` of the gradient, which is written over."""
        diagonal = self._diagonal(C)
        goal = reduction * np.linalg.norm(gradient)
        step, product, residual = np.zeros_like(gradient), np.empty_like(gradient), np.negative(gradient, out=gradient)
        direction = residual / diagonal
        size = np.vdot(residual, direction)
        for _ in range(200):
            self._hessian_product(direction, C, product)
            length = size / np.vdot(direction, product)
            product *= length
            residual -= product
            np.multiply(direction, length, out=product)
            step += product
            if np.linalg.norm(residual) <= goal:
                break
            np.divide(residual, diagonal, out=product)
            before, size = size, np.vdot(residual, product)
            direction *= size / before
            direction += product
        return step
