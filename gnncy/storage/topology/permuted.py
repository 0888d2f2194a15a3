"""A graph on disk with its nodes in another order, and the features of its arcs with it."""
from collections.abc import Iterator

import numpy as np

from gnncy._memory import format_bytes
from gnncy.errors import MemoryLimitError
from gnncy.storage._sidecar import check_order, invert
from gnncy.storage.features import FeatureStorage
from gnncy.storage.topology.layout import writing

_LEAST = 1 << 16  # arcs in hand at a time, at least, but for those of a node that has more
_ARC_BYTES = 64  # of memory for each arc in hand


def write_permuted(graph, order, path, limit: int, edge_features, edge_path, overwrite: bool) -> None:
    """What :meth:`GraphStorage.permute` does."""
    order = check_order(order, graph.n_nodes, "order")
    if (edge_features is None) != (edge_path is None):
        raise ValueError("edge_features and edge_path go together: what to permute, and where to write it")
    if edge_features is not None and edge_features.shape[0] != graph.nnz:
        raise ValueError(f"edge_features must have a row for each of the {graph.nnz} arcs, "
                         f"got {edge_features.shape[0]}")
    position = invert(order)
    width = 0 if edge_features is None else edge_features.shape[1] * np.dtype(edge_features.dtype).itemsize
    held = order.nbytes + position.nbytes
    arcs = (limit - held) // (_ARC_BYTES + width)
    if arcs < _LEAST:
        least = held + _LEAST * (_ARC_BYTES + width)
        raise MemoryLimitError(f"memory_limit of {format_bytes(limit)} is too small to permute {graph.n_nodes} nodes; "
                               f"at least {format_bytes(least)} are needed")
    weights = graph.dtype if graph.weighted else None
    with writing(path, graph.n_nodes, weights, bool(graph.symmetric), overwrite) as writer:
        if edge_features is None:
            for columns, own, rows, _ in _pieces(graph, order, position, arcs):
                writer.append(rows, columns, own)
            return

        def blocks() -> Iterator[np.ndarray]:
            for columns, own, rows, numbers in _pieces(graph, order, position, arcs):
                writer.append(rows, columns, own)
                yield edge_features.read_batch(numbers)

        dtype = getattr(edge_features, "file_dtype", edge_features.dtype)
        FeatureStorage.from_blocks(edge_path, edge_features.shape, blocks(), dtype=dtype, overwrite=overwrite).close()


def _pieces(graph, order: np.ndarray, position: np.ndarray, arcs: int) -> Iterator[tuple]:
    """Arcs in their new order: new columns, weights or None, new rows, old numbers."""
    start = 0
    while start < len(order):
        first, degree = graph.spans(order[start:start + arcs])
        stops = np.cumsum(degree)
        count = max(1, int(np.searchsorted(stops, arcs, "right")))
        first, degree = first[:count], degree[:count]
        rows = np.repeat(np.arange(start, start + count), degree)
        numbers = np.arange(len(rows)) + np.repeat(first - (stops[:count] - degree), degree)
        columns = position[graph.read_arcs(numbers)]
        place = np.lexsort((columns, rows))
        numbers = numbers[place]
        yield columns[place], graph.read_weights(numbers) if graph.weighted else None, rows, numbers
        start += count
