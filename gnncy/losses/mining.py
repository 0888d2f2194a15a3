"""Hard negatives: the candidates that a loss learns most from, and is most misled by, found block by block."""
import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from gnncy._check import check_array, check_choice, check_finite, check_float, check_ids, check_int
from gnncy._kernels import rows, topk
from gnncy._kernels.graph import hops
from gnncy._random import derive, seed_from
from gnncy._threads import run_pieces
from gnncy.graph import as_csr

_ANCHORS, _TILE = 512, 640  # anchors that one thread takes at a time, and candidates that it compares with them
_BLOCK = 2 * _TILE  # candidates that are read at a time
_RINGS = 16  # the same, where each has candidates of its own
_ANY = np.iinfo(np.int64).max
_NO_LABELS = np.empty(0, np.int64)


@dataclass(slots=True, eq=False)
class MinedNegatives:
    """What a miner returns: one row an anchor, all of one length.

    Attributes
    ----------
    indices : ndarray of int64, shape (n_anchors, n_negatives)
        Positions among the candidates; -1 where ``mask`` is False. :func:`info_nce` takes them with the candidates as
        its ``table``, and gives the table's gradient back.
    mask : ndarray of bool, shape (n_anchors, n_negatives)
        False where an anchor has fewer negatives. Every row begins with its negatives.
    similarities : ndarray, shape (n_anchors, n_negatives)
        Cosines with the anchor; 0 where ``mask`` is False.
    n_hard : ndarray of int64, shape (n_anchors,)
        How many of a row's first negatives were chosen by the strategy itself; those that follow are its fill
        (``"semi_hard"``) or its random part (``"mixed"``).
    """

    indices: np.ndarray
    mask: np.ndarray
    similarities: np.ndarray
    n_hard: np.ndarray


class _Part(NamedTuple):
    """A list of each anchor's best candidates so far, of those with a cosine in (lower, upper)."""

    alpha: float | None  # None: by cosine; else by alpha times the cosine plus Gumbel noise
    lower: np.ndarray
    upper: np.ndarray
    scores: np.ndarray
    chosen: np.ndarray
    cosines: np.ndarray


class _Anchors(NamedTuple):
    """What tells anchors apart beside their vectors."""

    ids: np.ndarray
    labels: np.ndarray
    key: int


class _Columns(NamedTuple):
    """Candidates that come together: their positions in rising order, a mix of their ids, their labels."""

    names: np.ndarray
    mixed: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, names: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> "_Columns":
        return cls(names, (ids ^ (ids >> 32)).astype(np.uint32) * np.uint32(0x9E3779B1), labels)


class _Miner:
    """The strategies, whatever the candidates."""

    def __init__(self, strategy: str = "hardest", n_negatives: int = 16, *, margin: float = 0.2, fill: str = "random",
                 alpha: float = 5.0, hard_ratio: float = 0.5, max_similarity: float | None = None, seed=0):
        self.strategy = check_choice(strategy, "strategy", ("hardest", "semi_hard", "weighted", "mixed", "random"))
        self.n_negatives = check_int(n_negatives, "n_negatives", 1)
        self.margin = check_float(margin, "margin", above=0)
        self.fill = check_choice(fill, "fill", ("random", "hardest", "none"))
        self.alpha = check_float(alpha, "alpha", 0)
        self.hard_ratio = check_float(hard_ratio, "hard_ratio", 0, 1)
        self.max_similarity = None if max_similarity is None else check_float(max_similarity, "max_similarity", -1, 1)
        self.seed = seed_from(seed)

    def _key(self, key: int) -> int:
        return derive(self.seed, "negatives", check_int(key, "key", 0))

    def _parts(self, n: int, dtype, positive: np.ndarray | None) -> list[_Part]:
        """Empty lists of ``n`` anchors. ``positive`` holds the cosines of their positives, for semi-hard ones."""
        k, infinite = self.n_negatives, dtype.type(np.inf)
        lowest = np.full(n, -2, dtype)  # -inf marks what is left out
        highest = np.full(n, 2 if self.max_similarity is None else self.max_similarity, dtype)

        def part(alpha, lower=lowest, upper=highest, k=k):
            return _Part(alpha, lower, upper, np.full((n, k), -np.inf), np.zeros((n, k), np.int64),
                         np.zeros((n, k), dtype))

        if self.strategy == "hardest":
            return [part(None)]
        if self.strategy == "weighted":
            return [part(self.alpha)]
        if self.strategy == "random":
            return [part(0.0)]
        if self.strategy == "mixed":
            hard = int(k * self.hard_ratio)
            return [*([part(None, k=hard)] if hard else []), *([part(0.0)] if hard < k else [])]
        assert positive is not None
        edge = positive - dtype.type(self.margin / 2)
        parts = [part(None, edge, np.minimum(positive, highest))]
        if self.fill != "none":
            parts.append(part(0.0 if self.fill == "random" else None,
                              upper=np.minimum(np.nextafter(edge, infinite), highest)))
        return parts

    def _result(self, parts: list[_Part]) -> MinedNegatives:
        first, k = parts[0], self.n_negatives
        present = first.scores > -np.inf
        n_hard = present.sum(axis=1) * (first.alpha != 0)
        indices, similarities = first.chosen, first.cosines
        if len(parts) == 2:
            rest = parts[1]
            more = rest.scores > -np.inf
            if self.strategy == "mixed":
                # Of the hard part is what comes before its last in the order of hardness, or all if it is not full.
                value, name = first.scores[:, -1:], indices[:, -1:]
                more &= (rest.cosines < value) | ((rest.cosines == value) & (rest.chosen > name))
            present, indices, similarities = (np.concatenate(pair, axis=1) for pair in (
                (present, more), (indices, rest.chosen), (similarities, rest.cosines)))
            order = np.argsort(~present, axis=1, kind="stable")[:, :k]
            present, indices, similarities = (np.take_along_axis(x, order, 1)
                                              for x in (present, indices, similarities))
        return MinedNegatives(np.where(present, indices, -1), present,
                              np.where(present, similarities, similarities.dtype.type(0)), n_hard)


def _enter(parts: list[_Part], anchors: _Anchors, start: int, stop: int, tile: np.ndarray, columns: _Columns) -> None:
    """Show the lists of anchors start..stop some candidates, whose cosines ``tile`` holds."""
    for part in parts:
        bounds = part.lower[start:stop], part.upper[start:stop], anchors.labels[start:stop], columns.labels
        lists = part.scores[start:stop], part.chosen[start:stop], part.cosines[start:stop]
        if part.alpha is None:
            topk.largest(tile, columns.names, *bounds, *lists)
        else:
            topk.drawn(tile, columns.names, columns.mixed, anchors.ids[start:stop], anchors.key, part.alpha, *bounds,
                       *lists)


class HardNegativeMiner(_Miner):
    r"""Chooses each anchor's negatives among many candidates, by cosine.

    ================  ======================================================================================
    ``strategy``      chosen
    ================  ======================================================================================
    ``"hardest"``     the most similar
    ``"semi_hard"``   the most similar of those with :math:`s_p - m/2 < s < s_p`, less similar than the
                      positive by less than the margin *m* (of the squared distance of unit vectors: FaceNet's
                      rule); where there are too few, the ``fill``, never one that is more similar than the
                      positive
    ``"weighted"``    drawn without replacement with odds :math:`\propto e^{\alpha s}`, in the order of the draws
    ``"mixed"``       the floor(``hard_ratio`` ``n_negatives``) hardest, then uniform draws among the others
    ``"random"``      uniform draws without replacement
    ================  ======================================================================================

    Candidates are gone through in blocks of fixed size: no matrix of all anchors by all candidates is kept. Draws
    depend on the seed, the key and the two ids alone. Of candidates with the same cosine the first is preferred.

    Hard negatives in a graph are often false ones: of the ten nodes most similar to a node of Cora that are not its
    neighbours, three quarters are of its class. Training with the hardest alone then costs accuracy, ``"random"`` with
    ``exclude`` is hard to beat, and ``"weighted"`` is the mildest of the others.

    Parameters
    ----------
    strategy : {"hardest", "semi_hard", "weighted", "mixed", "random"}
    n_negatives : int
        Negatives of each anchor.
    margin : float
        Of ``"semi_hard"``.
    fill : {"random", "hardest", "none"}
        Of ``"semi_hard"``: what follows where the margin holds too few; uniform draws among the candidates beyond the
        margin, the most similar of them, or nothing.
    alpha : float
        Of ``"weighted"``; 0 is uniform.
    hard_ratio : float
        Of ``"mixed"``, in 0..1.
    max_similarity : float, optional
        Candidates with a cosine of at least this much are taken for false negatives and left out.
    seed : int or Generator
        Seed of the draws.

    References
    ----------
    Schroff, Kalenichenko and Philbin, FaceNet: a unified embedding for face recognition and clustering, CVPR 2015.
    Kool, van Hoof and Welling, Stochastic beams and where to find them: the Gumbel-top-k trick, ICML 2019.
    Xia et al., ProGCL: rethinking hard negative mining in graph contrastive learning, ICML 2022.

    Examples
    --------
    >>> from gnncy.losses import HardNegativeMiner, info_nce
    >>> z = np.array([[1., 0.], [0.9, 0.1], [0., 1.], [-1., 0.], [0.6, 0.8]])
    >>> miner = HardNegativeMiner("hardest", n_negatives=2)
    >>> mined = miner.mine(z[:1], z[1:2], z, anchor_ids=[0], positive_ids=[1])
    >>> mined.indices, mined.similarities
    (array([[4, 2]]), array([[0.6, 0. ]]))
    >>> loss, grads = info_nce(z[:1], z[1:2], mined.indices, table=z)
    >>> grads.table.shape
    (5, 2)
    """

    def mine(self, anchors, positives, candidates, *, anchor_ids=None, positive_ids=None, candidate_ids=None,
             exclude=None, anchor_labels=None, candidate_labels=None, key: int = 0) -> MinedNegatives:
        """Negatives of each anchor.

        Parameters
        ----------
        anchors : array, shape (n_anchors, d)
            Any length; only directions matter, and a row of zeros has cosine 0.
        positives : array, shape (n_anchors, d), or None
            Needed by ``"semi_hard"`` alone.
        candidates : array, shape (n_candidates, d), or storage
            A storage is anything with ``read_batch``, ``shape`` and ``dtype``; it is read once, block by block.
        anchor_ids : array of int, shape (n_anchors,), optional
            Nodes of the anchors. An anchor is never its own negative.
        positive_ids : array of int, shape (n_anchors,) or (n_anchors, p), optional
            Nodes of its positives: never negatives either.
        candidate_ids : array of int, shape (n_candidates,), optional
            Distinct nodes of the candidates; 0, 1, 2, … if not given. Of a storage: which rows are candidates.
        exclude : sparse array, shape (n, n), optional
            An anchor's candidates lie outside its row, say of the adjacency. Needs ``anchor_ids``; CSR is quickest.
        anchor_labels, candidate_labels : array of int, optional
            Candidates with the anchor's label are left out; a negative label is none. Labels that are to be learned
            have no place here.
        key : int
            The draw: the batch or step.

        Returns
        -------
        MinedNegatives

        Raises
        ------
        ValueError
            If shapes do not agree, or a row is not finite.
        IndexError
            If an id is out of range.
        """
        source = _Candidates(candidates, candidate_ids, candidate_labels)
        anchors = check_array(anchors, "anchors", finite=False)
        anchors = _unit(anchors.astype(np.result_type(anchors, source.dtype), copy=False), "anchors")
        n, d = anchors.shape
        if d != source.width:
            raise ValueError(f"anchors and candidates must be equally wide, got {d} and {source.width} columns")
        if (anchor_labels is None) != (candidate_labels is None):
            raise ValueError("labels are compared: pass both anchor_labels and candidate_labels, or neither")
        nodes = None if anchor_ids is None else check_ids(anchor_ids, _ANY, "anchor_ids")
        if nodes is not None and len(nodes) != n:
            raise ValueError(f"anchor_ids must have one id for each of {n} anchors, got {len(nodes)}")
        own = np.full(n, -1) if anchor_labels is None else _labels(anchor_labels, n, "anchor_labels")
        keys = _Anchors(np.arange(n) if nodes is None else nodes, own, self._key(key))
        positive = None
        if self.strategy == "semi_hard":
            if positives is None:
                raise ValueError("semi_hard compares candidates with positives: pass positives")
            positives = check_array(positives, "positives", finite=False, dtype=anchors.dtype)
            if positives.shape != anchors.shape:
                raise ValueError(f"positives must have the shape of anchors, {anchors.shape}, got {positives.shape}")
            positive = np.einsum("ij,ij->i", anchors, _unit(positives, "positives"))
        left_out = _LeftOut(*_pairs(n, nodes, _positive_ids(positive_ids, n, _ANY), exclude), source)
        parts = self._parts(n, anchors.dtype, positive)
        tiles: list[np.ndarray] = []  # one a thread at work, lent and given back

        def piece(start, stop, first, block):
            buffer = tiles.pop() if tiles else np.empty(_ANCHORS * _TILE, anchors.dtype)
            for low in range(0, len(block), _TILE):
                part = block[low:low + _TILE]
                tile = buffer[:(stop - start) * len(part)].reshape(stop - start, len(part))
                np.matmul(anchors[start:stop], part.T, out=tile)
                left_out.mark(tile, start, first + low)
                _enter(parts, keys, start, stop, tile, source.columns(first + low, first + low + len(part)))
            tiles.append(buffer)

        unit = np.empty((min(_BLOCK, len(source)), d), anchors.dtype)
        for first in range(0, len(source), _BLOCK):
            block = source.unit_rows(first, min(first + _BLOCK, len(source)), unit)
            run_pieces(functools.partial(piece, first=first, block=block), n, _ANCHORS)
        return self._result(parts)


class _Candidates:
    """Candidates from an array or a storage, in blocks of unit rows."""

    def __init__(self, candidates, ids, labels):
        self.stored = hasattr(candidates, "read_batch")
        if not self.stored:
            candidates = np.asarray(candidates)
        if len(candidates.shape) != 2 or 0 in candidates.shape:
            raise ValueError(f"candidates must have shape (n_candidates, d) with at least one row and column, "
                             f"got shape {candidates.shape}")
        self.source, (count, self.width) = candidates, candidates.shape
        self.dtype = np.dtype(np.float64 if candidates.dtype == np.float64 else np.float32)
        self.ids = None if ids is None else check_ids(ids, count if self.stored else _ANY, "candidate_ids")
        if self.ids is not None and not self.stored and len(self.ids) != count:
            raise ValueError(f"candidate_ids must have one id for each of {count} candidates, got {len(self.ids)}")
        self.count = count if self.ids is None else len(self.ids)
        self.labels = _labels(labels, self.count, "candidate_labels")

    def __len__(self) -> int:
        return self.count

    def unit_rows(self, first: int, last: int, out: np.ndarray) -> np.ndarray:
        if self.stored:
            block = self.source.read_batch(np.arange(first, last) if self.ids is None else self.ids[first:last])
        else:
            block = self.source[first:last]
        return _unit(check_array(block, "candidates", finite=False, dtype=out.dtype), "candidates", out[:last - first])

    def columns(self, first: int, last: int) -> _Columns:
        names = np.arange(first, last)
        return _Columns.of(names, names if self.ids is None else self.ids[first:last], self.labels[first:last])


class _LeftOut:
    """Pairs of an anchor and a candidate that must not meet, by their positions."""

    def __init__(self, anchors: np.ndarray, nodes: np.ndarray, candidates: _Candidates):
        ids = candidates.ids
        if ids is None:
            inside = nodes < len(candidates)
            anchors, places = anchors[inside], nodes[inside]
        else:
            order = np.argsort(ids, kind="stable")
            low, high = (np.searchsorted(ids, nodes, side, sorter=order) for side in ("left", "right"))
            times = high - low  # a node may be listed more than once
            within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
            anchors, places = np.repeat(anchors, times), order[np.repeat(low, times) + within]
        order = np.argsort(places, kind="stable")
        self.anchors, self.places = anchors[order], places[order]

    def mark(self, tile: np.ndarray, start: int, first: int) -> None:
        """Write -inf to a tile of cosines, which begins at anchor ``start`` and candidate ``first``."""
        low, high = np.searchsorted(self.places, [first, first + tile.shape[1]])
        row, column = self.anchors[low:high] - start, self.places[low:high] - first
        here = (row >= 0) & (row < len(tile))
        tile[row[here], column[here]] = -np.inf


class GraphHardNegativeMiner(_Miner):
    """Chooses each anchor's negatives among the nodes at some distance from it.

    Candidates are the nodes that can be reached by ``min_distance`` to ``max_distance`` arcs and by no fewer. They
    are found by a search that goes no farther, so an anchor's cost does not grow with the graph.

    .. warning:: Near nodes are the likeliest false negatives. Of the nodes two arcs away 72 % are of the anchor's own
       class in Cora and 74 % in CiteSeer, of those three arcs away 50 % and 62 %, against 18 % of a random pair; with
       nodes two arcs away as the only negatives a GRACE encoder loses 12 points of accuracy on both. As negatives they
       suit graphs whose neighbours differ, or tasks that ask who is a neighbour and who only nearly.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
        The neighbours are the ends of a node's arcs.
    strategy : {"hardest", "semi_hard", "weighted", "mixed", "random"}
    n_negatives : int
    min_distance, max_distance : int
        The ring, both ends included.
    margin, fill, alpha, hard_ratio, max_similarity, seed
        As ``strategy`` and ``n_negatives``, those of :class:`HardNegativeMiner`.

    See Also
    --------
    HardNegativeMiner : all candidates at once; its ``exclude`` keeps near nodes out.

    Notes
    -----
    Every thread that mines at a time keeps nine bytes a node.

    Examples
    --------
    >>> from gnncy.losses import GraphHardNegativeMiner
    >>> path = np.eye(6, k=1) + np.eye(6, k=-1)
    >>> miner = GraphHardNegativeMiner(path, n_negatives=3, min_distance=2, max_distance=3)
    >>> mined = miner.mine(np.eye(6), [0, 3])
    >>> mined.indices, mined.mask
    (array([[ 2,  3, -1],
           [ 0,  1,  5]]), array([[ True,  True, False],
           [ True,  True,  True]]))
    """

    def __init__(self, adjacency, strategy: str = "hardest", n_negatives: int = 16, *, min_distance: int = 2,
                 max_distance: int = 3, margin: float = 0.2, fill: str = "random", alpha: float = 5.0,
                 hard_ratio: float = 0.5, max_similarity: float | None = None, seed=0):
        super().__init__(strategy, n_negatives, margin=margin, fill=fill, alpha=alpha, hard_ratio=hard_ratio,
                         max_similarity=max_similarity, seed=seed)
        self.adjacency = as_csr(adjacency)
        self.min_distance = check_int(min_distance, "min_distance", 1)
        self.max_distance = check_int(max_distance, "max_distance", self.min_distance)
        self._scratch: list[tuple[np.ndarray, np.ndarray]] = []  # one a thread at work, lent and given back

    def mine(self, embeddings, anchor_ids, *, positive_ids=None, labels=None, key: int = 0) -> MinedNegatives:
        """Negatives of each anchor; an anchor with an empty ring has none.

        Parameters
        ----------
        embeddings : array, shape (n, d)
            A row for every node. Rows that are not finite are refused as anchors and never chosen as negatives.
        anchor_ids : array of int, shape (n_anchors,)
            Nodes that negatives are wanted for.
        positive_ids : array of int, shape (n_anchors,) or (n_anchors, p), optional
            Nodes that are not negatives, though they lie in the ring. ``"semi_hard"`` compares with the first.
        labels : array of int, shape (n,), optional
            Nodes with the anchor's label are left out; a negative label is none.
        key : int
            The draw: the batch or step.

        Returns
        -------
        MinedNegatives
            ``indices`` are node ids.
        """
        x = check_array(embeddings, "embeddings", finite=False)
        n = self.adjacency.shape[0]
        if len(x) != n:
            raise ValueError(f"embeddings must have a row for each of {n} nodes, got shape {x.shape}")
        nodes = check_ids(anchor_ids, n, "anchor_ids")
        anchors = _unit(x[nodes], "embeddings")
        labels = _labels(labels, n, "labels")
        own = labels[nodes] if len(labels) else np.full(len(nodes), -1)
        keys = _Anchors(nodes, own, self._key(key))
        positive = None
        if self.strategy == "semi_hard" and positive_ids is None:
            raise ValueError("semi_hard compares candidates with positives: pass positive_ids")
        positive_ids = _positive_ids(positive_ids, len(nodes), n)
        if self.strategy == "semi_hard":
            positive = np.einsum("ij,ij->i", anchors, _unit(x[positive_ids[:, 0]], "embeddings"))
        parts = self._parts(len(nodes), x.dtype, positive)

        def piece(a, b):
            seen, reached = self._scratch.pop() if self._scratch else (np.zeros(n, np.uint8), np.empty(n + 1, np.int64))
            for i in range(a, b):
                begin, end = hops.ring(self.adjacency.indptr, self.adjacency.indices, nodes[i], self.min_distance,
                                       self.max_distance, seen, reached)
                ring = np.sort(reached[begin:end])
                ring = ring[~np.isin(ring, positive_ids[i])]
                tile = np.empty((1, len(ring)), x.dtype)
                topk.cosines(x, ring, anchors[i], tile[0])
                _enter(parts, keys, i, i + 1, tile, _Columns.of(ring, ring, labels[ring] if len(labels) else labels))
            self._scratch.append((seen, reached))

        run_pieces(piece, len(nodes), _RINGS)
        return self._result(parts)


def _unit(x: np.ndarray, name: str, out: np.ndarray | None = None) -> np.ndarray:
    """Unit rows. Rows that are not finite are refused: their lengths show them without another pass."""
    out = np.empty_like(x) if out is None else out
    norms = np.empty(len(x), x.dtype)
    run_pieces(lambda a, b: rows.normalise(x[a:b], out[a:b], norms[a:b]), len(x), 1024)
    if not np.isfinite(norms).all():
        check_finite(x, name)
        raise ValueError(f"{name} has rows too long for {x.dtype} (a sum of squares overflows); scale them down")
    return out


def _pairs(n: int, nodes: np.ndarray | None, positive_ids: np.ndarray, exclude) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of an anchor's position and a node that must not be its negative."""
    anchors = np.arange(n)
    pairs = [(np.repeat(anchors, positive_ids.shape[1]), positive_ids.ravel())]
    if nodes is not None:
        pairs.append((anchors, nodes))
    if exclude is not None:
        if nodes is None:
            raise ValueError("exclude has a row for every node: pass anchor_ids, which say what rows are the anchors'")
        exclude = exclude.tocsr() if sp.issparse(exclude) else np.asarray(exclude)
        check_ids(nodes, exclude.shape[0], "anchor_ids")
        near = as_csr(exclude[nodes], name="exclude", square=False)  # of the rows that are needed alone
        pairs.append((np.repeat(anchors, np.diff(near.indptr)), near.indices))
    return np.concatenate([a for a, _ in pairs]), np.concatenate([ids for _, ids in pairs])


def _positive_ids(ids, n: int, limit: int) -> np.ndarray:
    """One row of ids an anchor: empty if there are none, of length one if they are one-dimensional."""
    if ids is None:
        return np.empty((n, 0), np.int64)
    ids = np.asarray(ids)
    if ids.ndim not in (1, 2) or len(ids) != n or 0 in ids.shape:
        raise ValueError(f"positive_ids must have shape ({n},) or ({n}, p), got {ids.shape}")
    return check_ids(ids.ravel(), limit, "positive_ids").reshape(n, -1)


def _labels(labels, n: int, name: str) -> np.ndarray:
    if labels is None:
        return _NO_LABELS
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {labels.dtype}; number them by np.unique")
    if labels.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), got {labels.shape}")
    return np.ascontiguousarray(labels, np.int64)
