"""The margin loss on pairs of rows: similar ones together, others at least a margin apart."""
import warnings

import numpy as np
import scipy.sparse as sp

from gnncy._check import check_array, check_choice, check_float, check_ids, check_int
from gnncy._kernels import pairs as kernels
from gnncy._kernels import rows
from gnncy._kernels.graph import incidence
from gnncy._random import derive
from gnncy._threads import run_pieces
from gnncy.graph import as_csr
from gnncy.losses.loss import REDUCTIONS, Problem, evaluate

_ROWS = 1024  # nodes that one thread takes at a time
_DRAWS = 4096
_TRIES = 64  # draws that may hit an edge before the next free pair is taken


class Pairs:
    """Pairs of nodes, similar or not, arranged so that the gradient of each node is one pass over its pairs.

    Losses on pairs make one of what they are given. Make it yourself, once, where the same pairs are used again.

    Parameters
    ----------
    left, right : array_like of int, shape (p,)
        Node ids. A pair of the same kind listed again, in either direction, counts once: its loss at the later
        places is 0, and a mean leaves them out. A node paired with itself has distance 0.
    labels : array_like of bool or of 0 and 1, shape (p,), optional
        1 for a similar pair, 0 for a dissimilar one. Default: all similar.
    n_nodes : int, optional
        Default: the largest id and one.

    Attributes
    ----------
    n_nodes : int
    similar : ndarray of uint8, shape (p,)
        The labels.
    repeated : ndarray of bool, shape (p,), or None
        Pairs that were listed before; None if there is none.

    See Also
    --------
    LocalContrastiveLoss : the margin loss on pairs.

    Examples
    --------
    >>> from gnncy.losses import Pairs
    >>> pairs = Pairs([0, 1, 2], [1, 0, 3], [1, 1, 0])
    >>> len(pairs), pairs.repeated
    (3, array([False,  True, False]))
    """

    def __init__(self, left, right, labels=None, *, n_nodes: int | None = None):
        limit = np.iinfo(np.int64).max if n_nodes is None else check_int(n_nodes, "n_nodes", 1)
        left, right = check_ids(left, limit, "left"), check_ids(right, limit, "right")
        if left.shape != right.shape or not len(left):
            raise ValueError(f"left and right must name at least one pair and be of one length, got {len(left)} and "
                             f"{len(right)}")
        self.n_nodes = int(max(left.max(), right.max())) + 1 if n_nodes is None else limit
        self.similar = _labels(labels, len(left))
        self._arrange(left, right)
        repeated = np.zeros(len(left), np.uint8)
        found = incidence.repeats(self.indptr, self.others, self.pairs, self.similar, repeated)
        self.repeated = repeated.view(bool) if found else None
        self.count = len(left) - found

    def _arrange(self, left, right):
        small = max(self.n_nodes, 2 * len(left)) < np.iinfo(np.int32).max
        index = np.int32 if small else np.int64
        left, right = left.astype(index, copy=False), right.astype(index, copy=False)
        self.indptr = np.zeros(self.n_nodes + 1, index)
        incidence.count(left, right, self.indptr)
        listed, self.others = np.empty((2, 2 * len(left)), index)
        numbers, self.pairs = np.empty((2, 2 * len(left)), index)
        incidence.enter(left, right, self.indptr[:-1].copy(), listed, numbers)
        incidence.transpose(self.indptr, listed, numbers, self.indptr[:-1].copy(), self.others, self.pairs)

    @classmethod
    def from_graph(cls, adjacency) -> "Pairs":
        """The edges of a graph as similar pairs.

        Parameters
        ----------
        adjacency : sparse or dense array, shape (n, n)
            An edge is one pair, whether it is stored in one direction or in both; pairs are numbered by their smaller
            node, then the larger. Weights and self-loops are left out.

        Returns
        -------
        Pairs
        """
        graph = as_csr(adjacency)
        if graph.diagonal().any():
            coo = graph.tocoo()
            keep = coo.row != coo.col
            graph = as_csr(sp.csr_array((coo.data[keep], (coo.row[keep], coo.col[keep])), shape=graph.shape))
        made = cls.__new__(cls)
        made.n_nodes, made.repeated = graph.shape[0], None
        made._number(graph)
        if made.count < 0:  # an arc without its reverse
            pattern = sp.csr_array((np.ones(graph.nnz, np.float32), graph.indices, graph.indptr), graph.shape)
            made._number(as_csr(pattern + pattern.T))
        if made.count == 0:
            raise ValueError("adjacency has no edges between different nodes, so there are no pairs")
        made.similar = np.ones(made.count, np.uint8)
        return made

    def _number(self, graph):
        self.indptr, self.others = graph.indptr, graph.indices
        self.pairs = np.empty_like(graph.indices)
        self.count = incidence.number(self.indptr, self.others, self.indptr[:-1].copy(), self.pairs)

    def __len__(self) -> int:
        return len(self.similar)

    def __repr__(self) -> str:
        return f"Pairs({len(self)} pairs of {self.n_nodes} nodes, {int(self.similar.sum())} similar)"

    def sample_others(self, count: int, key: int) -> "Pairs":
        """Dissimilar pairs of uniform nodes that are neither the same nor a pair here.

        Parameters
        ----------
        count : int
            Pairs to draw, independently of each other.
        key : int
            The draw; the same key gives the same pairs.

        Returns
        -------
        Pairs

        Raises
        ------
        ValueError
            If all nodes are pairs of each other.
        """
        check_int(count, "count", 1)
        n = self.n_nodes
        if len(self) >= n * (n - 1) // 2:
            firsts = np.repeat(np.arange(n), np.diff(self.indptr))
            different = self.others > firsts
            if len(np.unique(firsts[different] * n + self.others[different])) == n * (n - 1) // 2:
                raise ValueError(f"every two of the {n} nodes are a pair already: there is no dissimilar pair to draw")
        left, right = np.empty((2, count), self.indptr.dtype)
        key = derive(key, "pairs")
        run_pieces(lambda a, b: incidence.non_edges(self.indptr, self.others, key, _TRIES, a, b, left, right), count,
                   _DRAWS)
        made = Pairs.__new__(Pairs)
        made.n_nodes, made.count, made.repeated = n, count, None
        made.similar = np.zeros(count, np.uint8)
        made._arrange(left, right)
        return made


def _labels(labels, count: int) -> np.ndarray:
    if labels is None:
        return np.ones(count, np.uint8)
    array = np.asarray(labels)
    if array.shape != (count,):
        raise ValueError(f"labels must have one entry for each of the {count} pairs, got shape {array.shape}")
    if array.dtype != bool and (array.dtype.kind not in "iuf" or ((array != 0) & (array != 1)).any()):
        raise ValueError("labels must be 1 for similar pairs and 0 for dissimilar ones")
    return array.astype(np.uint8)


def as_pairs(pairs, labels, n_nodes: int) -> Pairs:
    """``pairs`` in any of the forms that losses take, for embeddings of ``n_nodes`` rows."""
    if isinstance(pairs, Pairs) or sp.issparse(pairs):
        if labels is not None:
            raise ValueError("labels belong to pairs given as (left, right): a graph's edges are similar, and Pairs "
                             "hold their own")
        made = pairs if isinstance(pairs, Pairs) else Pairs.from_graph(pairs)
    else:
        if not isinstance(pairs, (tuple, list, np.ndarray)) or len(pairs) != 2:
            raise TypeError("pairs must be a sparse graph, (left, right) with node ids, or Pairs, got "
                            f"{type(pairs).__name__}")
        left, right = pairs
        made = Pairs(left, right, labels, n_nodes=n_nodes)
    if made.n_nodes > n_nodes:
        raise ValueError(f"pairs are of {made.n_nodes} nodes, but there are embeddings of {n_nodes}")
    return made


class PairProblem(Problem):
    """A loss on pairs: ``kernel`` run over each part of them, gradients by the rows added up."""

    def __init__(self, embeddings, *, kernel, parts: list[Pairs], options: tuple = (), normalize: bool = False):
        self.embeddings = check_array(embeddings, "embeddings")
        self.kernel, self.parts = kernel, parts
        self.options = tuple(self.embeddings.dtype.type(x) for x in options)
        self.count = sum(part.count for part in parts)
        self.norms: np.ndarray | None = None
        if normalize:
            given, unit = self.embeddings, np.empty_like(self.embeddings)
            norms = np.empty(len(given), given.dtype)
            run_pieces(lambda a, b: rows.normalise(given[a:b], unit[a:b], norms[a:b]), len(given), _ROWS)
            self.embeddings, self.norms = unit, norms

    def solve(self, weight):
        z = self.embeddings
        losses = np.empty(sum(map(len, self.parts)))
        grad = np.zeros_like(z)
        weights = np.empty(len(losses), z.dtype)
        weights[:] = 0 if weight is None else weight
        first = 0
        for part in self.parts:
            at = slice(first, first + len(part))
            first += len(part)
            if part.repeated is not None:
                weights[at][part.repeated] = 0

            def piece(a, b, part=part, at=at):
                self.kernel(part.indptr, part.others, part.pairs, z, part.similar, weights[at], *self.options, a, b,
                            losses[at], grad)

            run_pieces(piece, part.n_nodes, _ROWS)
            if part.repeated is not None:
                losses[at][part.repeated] = 0
        norms = self.norms
        if norms is not None and weight is not None:
            run_pieces(lambda a, b: rows.normalise_grad(z[a:b], norms[a:b], grad[a:b], grad[a:b]), len(z), _ROWS)
        return losses, (grad,)


class LocalContrastiveLoss:
    r"""Margin loss on pairs: similar nodes are drawn together, dissimilar ones pushed apart up to a margin.

    .. math:: \ell_{ij} = y_{ij}\, d_{ij}^2 + (1 - y_{ij}) \max(0,\, m - d_{ij})^2, \qquad d_{ij} = \|z_i - z_j\|

    with the label *y* and the margin *m*. The gradients by the two rows of a pair are opposite, so that those of all
    nodes sum to 0. Two equal rows of a dissimilar pair have no direction to part in; they get one of length
    2 m along an axis that the pair's number picks.

    Parameters
    ----------
    margin : float
        In units of the embeddings, or of the chords between unit vectors (0 to 2) with ``normalize``.
    reduction : {"mean", "sum", "none"}
        Of the pairs' losses. The gradients are those of the same mean or sum, with "none" of the sum.
    negatives : int
        Dissimilar pairs drawn for each similar one: two different nodes that are no pair, each uniform. The draw
        depends on the ``key`` of the call alone.
    normalize : bool
        Compare rows divided by their length. A row shorter than 1e-12 becomes 0 and has gradient 0.

    See Also
    --------
    Pairs : pairs prepared for several calls.
    SpectralRegularization : attraction alone, meant as such.

    Notes
    -----
    Without dissimilar pairs the loss is least where all rows are equal; a UserWarning says so.

    References
    ----------
    Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import LocalContrastiveLoss
    >>> z = np.array([[0., 0.], [3., 4.], [0., 0.5]])
    >>> loss, grad = LocalContrastiveLoss(margin=1.0, reduction="none")(z, ([0, 0], [1, 2]), [1, 0])
    >>> loss
    array([25.  ,  0.25])
    >>> grad
    array([[-6., -7.],
           [ 6.,  8.],
           [ 0., -1.]])
    """

    def __init__(self, margin: float = 1.0, reduction: str = "mean", *, negatives: int = 0, normalize: bool = False):
        self.margin = check_float(margin, "margin", above=0)
        self.reduction = check_choice(reduction, "reduction", REDUCTIONS)
        self.negatives = check_int(negatives, "negatives", 0)
        self.normalize = bool(normalize)

    def __call__(self, embeddings, pairs, labels=None, *, key: int | None = None):
        """The loss and its gradient.

        Parameters
        ----------
        embeddings : array_like or Tensor, shape (n, d)
        pairs : sparse array (n, n), (left, right), or Pairs
            The edges of a graph, each once and all similar, or node ids: see :class:`Pairs`.
        labels : array_like of bool or of 0 and 1, optional
            Of the pairs (left, right): 1 similar, 0 dissimilar. Default: all similar.
        key : int
            Needed with ``negatives``: what the draw depends on, for instance the number of the step.

        Returns
        -------
        loss : float, or ndarray for ``reduction="none"``
            With "none" one entry for each pair, then one for each drawn pair. Float64.
        grad : ndarray, shape (n, d)
            In the type of the embeddings.

        Of a Tensor the loss alone comes back, as a Tensor on the tape.
        """
        pairs = as_pairs(pairs, labels, len(embeddings))
        parts = [pairs]
        similar = int(pairs.similar.sum())
        if self.negatives:
            if key is None:
                raise ValueError("negatives are drawn by a key: call with key=, for instance the number of the step")
            if similar:
                parts.append(pairs.sample_others(self.negatives * similar, check_int(key, "key")))
        elif similar == len(pairs):
            warnings.warn("all pairs are similar: the loss is least where all embeddings are equal. Give dissimilar "
                          "pairs, draw some with negatives=, or add a loss that keeps embeddings apart",
                          UserWarning, stacklevel=2)
        out = evaluate(PairProblem, embeddings, reduction=self.reduction, kernel=kernels.margin_grad, parts=parts,
                       options=(self.margin,), normalize=self.normalize)
        return (out[0], out[1][0]) if isinstance(out, tuple) else out

    def __repr__(self) -> str:
        return (f"LocalContrastiveLoss(margin={self.margin}, reduction={self.reduction!r}, "
                f"negatives={self.negatives}, normalize={self.normalize})")
