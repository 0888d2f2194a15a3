"""Curricula: training in stages, from easy to hard."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
from scipy.sparse import issparse

from gnncy._check import check_float, check_int
from gnncy.graph import as_csr, normalize, spmm
from gnncy.optim import Scheduler


def check_weights(weights, name: str) -> dict[str, float]:
    """Weights by name, each at least 0."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"{name} must be a dict of weights by the names of losses, got {type(weights).__name__}")
    return {str(key): check_float(value, f"{name}[{key!r}]", 0) for key, value in weights.items()}


@dataclass(frozen=True)
class CurriculumStage:
    """What holds during one stage of a curriculum.

    Parameters
    ----------
    name : str
        For the log.
    epochs : int
        How long it lasts, at least 1.
    temperature : float
        Of the contrastive loss, above 0.
    n_negatives : int
        Negatives of each anchor, at least 1.
    loss_weights : dict of str to float
        A weight for each loss by name, at least 0.
    difficulty : float
        Samples up to this difficulty are trained; 0 is the easiest, 1 the hardest.

    Examples
    --------
    >>> from gnncy.training import CurriculumStage
    >>> stage = CurriculumStage("easy", epochs=5, temperature=0.5, n_negatives=5, difficulty=0.3)
    >>> stage.include([0.1, 0.9])
    array([ True, False])
    """

    name: str
    epochs: int
    temperature: float
    n_negatives: int
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    difficulty: float = 1.0

    def __post_init__(self):
        check_int(self.epochs, "epochs", 1)
        check_float(self.temperature, "temperature", above=0)
        check_int(self.n_negatives, "n_negatives", 1)
        check_float(self.difficulty, "difficulty", 0, 1)
        object.__setattr__(self, "loss_weights", check_weights(self.loss_weights, "loss_weights"))

    def include(self, difficulties) -> np.ndarray:
        """Which samples are trained now.

        Parameters
        ----------
        difficulties : array_like
            In 0..1.

        Returns
        -------
        ndarray of bool
            True where the difficulty is at most the stage's.
        """
        difficulties = np.asarray(difficulties, np.float64)
        if not ((difficulties >= 0) & (difficulties <= 1)).all():
            raise ValueError("difficulties must lie in 0..1, from the easiest to the hardest sample; scale them, "
                             "for example by rank: scipy.stats.rankdata(x) / len(x)")
        return difficulties <= self.difficulty


def _weights(infonce: float, local: float, spectral: float, reconstruction: float) -> dict[str, float]:
    return {"infonce": infonce, "local": local, "spectral": spectral, "reconstruction": reconstruction}


DEFAULT_STAGES = (
    CurriculumStage("easy", 10, 0.5, 5, _weights(1.0, 0.5, 0.1, 0.5), 0.3),
    CurriculumStage("medium", 20, 0.3, 10, _weights(1.0, 0.3, 0.05, 0.3), 0.5),
    CurriculumStage("hard", 30, 0.1, 20, _weights(1.0, 0.1, 0.01, 0.1), 0.7),
)


class CurriculumScheduler(Scheduler):
    """Moves through the stages of a curriculum, one ``step()`` an epoch.

    The last stage does not end. During its epochs its difficulty rises evenly to 1, and stays there: in the end every
    sample is trained.

    Parameters
    ----------
    stages : sequence of CurriculumStage, optional
        At least one. Default: easy (10 epochs), medium (20) and hard (30), with falling temperature (0.5, 0.3, 0.1) and
        more negatives (5, 10, 20).

    References
    ----------
    Bengio, Louradour, Collobert and Weston, Curriculum Learning, ICML 2009.

    Examples
    --------
    >>> from gnncy.training import CurriculumScheduler
    >>> curriculum = CurriculumScheduler()
    >>> curriculum.value.name, curriculum.value.temperature
    ('easy', 0.5)
    >>> for epoch in range(10):
    ...     stage = curriculum.step()
    >>> stage.name, stage.n_negatives
    ('medium', 10)
    >>> [round(curriculum.at(epoch).difficulty, 2) for epoch in (30, 45, 59, 100)]
    [0.7, 0.86, 1.0, 1.0]
    """

    def __init__(self, stages: Sequence[CurriculumStage] | None = None):
        self.stages = tuple(DEFAULT_STAGES if stages is None else stages)
        if not self.stages:
            raise ValueError("stages is empty: a curriculum needs at least one CurriculumStage")
        for i, stage in enumerate(self.stages):
            if not isinstance(stage, CurriculumStage):
                raise TypeError(f"stages[{i}] must be a CurriculumStage, got {type(stage).__name__}")
        super().__init__(self.at)

    def at(self, t: float) -> CurriculumStage:
        """The stage at a time.

        Parameters
        ----------
        t : float
            Epochs since the start.

        Returns
        -------
        CurriculumStage
            The last one with its difficulty as it is then.
        """
        epoch = int(t)
        starts = [0, *accumulate(stage.epochs for stage in self.stages[:-1])]
        for stage, start in zip(self.stages[:-1], starts, strict=False):
            if epoch < start + stage.epochs:
                return stage
        last = self.stages[-1]
        share = min(1.0, (epoch - starts[-1]) / (last.epochs - 1)) if last.epochs > 1 else 1.0
        return replace(last, difficulty=1.0 if share == 1 else last.difficulty + (1 - last.difficulty) * share)

    def step(self) -> CurriculumStage:
        """Move on by one epoch.

        Returns
        -------
        CurriculumStage
            What is in force from now on.
        """
        return super().step()


def neighbor_difficulty(adjacency, features) -> np.ndarray:
    """How unlike the mean of its neighbours' features each node's are, as a rank: a difficulty that asks for no labels.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
    features : array or sparse array, shape (n, d)
        In memory.

    Returns
    -------
    ndarray of float64, shape (n,)
        From 1/n, the easiest, to 1, the hardest: by 1 - cosine. A node without neighbours is among the hardest; of
        equal ones the first is easier.

    Examples
    --------
    >>> from gnncy.training import neighbor_difficulty
    >>> star = [[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    >>> neighbor_difficulty(star, [[1, 0], [1, 0], [1, 0], [0, 1]])
    array([0.75, 0.25, 0.5 , 1.  ])
    """
    mean = normalize(as_csr(adjacency), "row", self_loops=0.0)
    if issparse(features):
        x, near = features.tocsr(), mean @ features.tocsr()
        agreement, lengths = x.multiply(near).sum(axis=1), [abs(m).power(2).sum(axis=1) for m in (x, near)]
    else:
        x = np.asarray(features, np.float32)
        near = spmm(mean, x)
        agreement, lengths = np.einsum("ij,ij->i", x, near), [np.einsum("ij,ij->i", m, m) for m in (x, near)]
    length = np.sqrt(np.asarray(lengths, np.float64).reshape(2, -1).prod(axis=0))
    cosine = np.divide(np.ravel(agreement), length, out=np.full(len(length), -1.0), where=length > 0)
    ranks = np.empty(len(cosine))
    ranks[np.argsort(-cosine, kind="stable")] = np.arange(1, len(cosine) + 1) / len(cosine)
    return ranks
