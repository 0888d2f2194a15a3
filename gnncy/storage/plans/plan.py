"""How an epoch is read, and what that is expected to cost."""
from dataclasses import dataclass

from gnncy._check import check_choice, check_float, check_int

PLANS = {"A": "in RAM", "B": "hot rows and coalesced reads", "C": "hyperbatch in RAM", "D": "scan and repack"}


@dataclass(frozen=True)
class EpochPlan:
    """One way to read an epoch's minibatches, with what it is predicted to cost.

    Parameters
    ----------
    name : {"A", "B", "C", "D"}
        A holds all rows in memory. B holds hot rows and reads the others of each minibatch in coalesced runs.
        C reads the distinct rows of ``window`` minibatches in one ascending pass into memory. D scans the file once
        for ``window`` minibatches, writes each row to the extents of those that need it, and reads the extents back.
    hot_rows : int
        Rows held in memory throughout.
    window : int
        Minibatches that one pass over the file serves.
    seconds : float
        Predicted input and output of an epoch.
    bytes_read, bytes_written : int
        Predicted bytes of an epoch.
    operations : int
        Predicted system calls of an epoch.
    peak_memory : int
        Bytes held at most.
    spill_bytes : int
        Disk space of the temporary file.
    """

    name: str
    hot_rows: int
    window: int
    seconds: float
    bytes_read: int
    bytes_written: int
    operations: int
    peak_memory: int
    spill_bytes: int = 0

    def __post_init__(self):
        check_choice(self.name, "name", tuple(PLANS))
        check_int(self.hot_rows, "hot_rows", 0)
        check_int(self.window, "window", 1)
        check_float(self.seconds, "seconds", 0)
