"""A graph of which no part fits into memory: features, arcs, and a table of embeddings.

    python docs/examples/larger_than_memory.py FOLDER --scale 21 --memory-limit 200MB

writes an R-MAT graph to FOLDER, within the limit; trains a GraphSAGE classifier for an epoch on sampled neighbourhoods,
arcs and features on disk; scores all nodes, layer by layer; and learns a table of embeddings from the arcs alone. Each
step says what it took. The scores map the arcs from their files: those pages belong to the system, which takes them
back when it needs them, but they count in the peak that is printed. The last step smooths the features over the arcs,
which are read block by block, and trains an encoder of single rows; it takes at least 200 bytes a node, and says so if
that is more than the limit.
"""
import argparse
import os
import time
from pathlib import Path

import numpy as np

from gnncy import GraphEncoder, NodeEmbedding, _memory, nn, optim
from gnncy.datasets import open_graph, write_rmat
from gnncy.storage import ColdTierLoader, GraphStorage


def folder_bytes(folder: Path, *names: str) -> int:
    """Bytes of some files."""
    return sum(os.path.getsize(folder / name) for name in names)


class Steps:
    """Prints what each step took."""

    def __init__(self) -> None:
        self.start_up, self.began = _memory.rss(), time.monotonic()

    def done(self, what: str) -> None:
        """End a step."""
        now = time.monotonic()
        print(f"{what}: {now - self.began:.0f} s, peak {_memory.format_bytes(_memory.peak_rss() - self.start_up)} "
              f"beyond start-up", flush=True)
        _memory.reset_peak()
        self.began = time.monotonic()


def cross_entropy(scores: nn.Tensor, labels: np.ndarray) -> nn.Tensor:
    """Mean over the rows."""
    target = np.zeros(scores.shape, np.float32)
    target[np.arange(len(labels)), labels] = -1 / len(labels)
    return (nn.log_softmax(scores) * target).sum()


def main(arguments=None) -> dict:
    """Run the example; what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=int, default=21, help="2**scale nodes")
    parser.add_argument("--edge-factor", type=int, default=16, help="edges a node, about half as many as arcs")
    parser.add_argument("--columns", type=int, default=128, help="of the features and of the embeddings")
    parser.add_argument("--memory-limit", default="200MB")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    folder, limit, threads, steps = options.folder, options.memory_limit, options.threads, Steps()

    write_rmat(folder, options.scale, options.edge_factor, n_features=options.columns, memory_limit=limit)
    data = open_graph(folder)  # the adjacency's arrays are mapped from the files, not read
    n, classes = data.n_nodes, len(data.class_names)
    arcs = folder_bytes(folder, "indptr.npy", "indices.npy")
    print(f"{n} nodes: {_memory.format_bytes(data.features.nbytes)} of features; {data.adjacency.nnz} arcs: "
          f"{_memory.format_bytes(arcs)}; memory limit {limit}", flush=True)
    steps.done("writing the graph")

    # Features and arcs on disk: neighbourhoods are sampled in ascending passes, features read by a plan.
    model = nn.GraphSequential(nn.SAGEConv(options.columns, 64, rng=0), nn.ReLU(), nn.SAGEConv(64, classes, rng=1))
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
    seeds = data.split.train[:min(100_000, len(data.split.train))]
    losses = []
    with GraphStorage(folder) as graph, ColdTierLoader(data.features, graph, seeds, fanouts=(5, 5), batch_size=1000,
                                                       memory_limit=limit) as loader:
        print(loader.plan, flush=True)
        for minibatch in loader.epoch(0):
            scores = model(minibatch.batch.blocks, nn.Tensor(minibatch.features))
            loss = cross_entropy(scores, data.labels[minibatch.batch.seeds])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    steps.done(f"an epoch of {len(losses)} minibatches, loss {losses[0]:.2f} to {np.mean(losses[-5:]):.2f}")

    # All nodes, by all their neighbours.
    with nn.infer(model, data.adjacency, data.features, out=folder / "scores.npy", memory_limit=limit, overwrite=True,
                  n_jobs=threads) as scores:
        test = data.split.test[:100_000]
        accuracy = float(np.mean(scores.read_batch(test).argmax(axis=1) == data.labels[test]))
    steps.done(f"scores of all nodes, {accuracy:.3f} of the test nodes right")

    # A table of embeddings, learned from the arcs alone, and its optimizer's state.
    with GraphStorage(folder) as graph:
        table = NodeEmbedding(options.columns, epochs=1, memory_limit=limit, folder=folder / "table", n_jobs=threads,
                              random_state=0).fit(graph)
    record = table.history_[-1]
    print(f"table of {_memory.format_bytes(folder_bytes(folder / 'table', 'table.npy'))}: {record['pairs']} pairs at "
          f"{record['pairs'] / record['seconds']:.0f} a second", flush=True)
    steps.done("an epoch over the arcs")

    # Features smoothed over the arcs on disk, and an encoder trained on the smoothed rows, which lie on disk as well.
    encoder = GraphEncoder(options.columns, memory_limit=limit, n_jobs=threads, random_state=0)
    with GraphStorage(folder) as graph:
        needed = encoder.estimate(graph, features=data.features).needed
        if needed > _memory.parse_bytes(limit):
            print(f"smoothing takes {_memory.format_bytes(needed)}, and gets them", flush=True)
            encoder.set_params(memory_limit=needed)
        embedding = encoder.fit_transform(graph, features=data.features)
    steps.done(f"smoothing and {encoder.n_iter_} epochs, loss {encoder.loss_:.2f}")
    data.features.close()
    return {"accuracy": accuracy, "losses": losses, "embedding": embedding}


if __name__ == "__main__":
    main()
