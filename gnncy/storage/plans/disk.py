"""What a disk costs: the constants of the model ``seconds = operations * operation_seconds + bytes / bandwidth``."""
from dataclasses import dataclass

from gnncy._check import check_float, check_int


@dataclass(frozen=True)
class DiskModel:
    """Constants of a storage device with many requests in flight.

    Parameters
    ----------
    operation_seconds : float
        Fixed cost of one operation, in seconds, at ``threads`` requests in flight.
    read_bandwidth, write_bandwidth : float
        Bytes a second of large requests.
    threads : int
        Requests in flight that the device serves best.

    Examples
    --------
    >>> from gnncy.storage.plans import DiskModel
    >>> disk = DiskModel(14e-6, 3.5e9, 2.6e9, threads=16)
    >>> disk.read_seconds(operations=1000, nbytes=4096 * 1000)
    0.0151...
    >>> round(disk.break_even_gap)
    49000
    """

    operation_seconds: float
    read_bandwidth: float
    write_bandwidth: float
    threads: int = 16

    def __post_init__(self):
        check_float(self.operation_seconds, "operation_seconds", 0)
        for name in ("read_bandwidth", "write_bandwidth"):
            check_float(getattr(self, name), name, 1)
        check_int(self.threads, "threads", 1)

    @property
    def break_even_gap(self) -> float:
        """Bytes whose reading costs as much as one more operation."""
        return self.operation_seconds * self.read_bandwidth

    def read_seconds(self, operations: float, nbytes: float) -> float:
        """Seconds that reads take."""
        return operations * self.operation_seconds + nbytes / self.read_bandwidth

    def write_seconds(self, operations: float, nbytes: float) -> float:
        """Seconds that writes take."""
        return operations * self.operation_seconds + nbytes / self.write_bandwidth
