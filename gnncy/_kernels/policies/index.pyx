"""The hash table of ids and slots."""
import numpy as np

from libc.stdint cimport uint32_t


cdef class Index:
    """Where each id is: an open hash table, at most half full, without tombstones."""

    def __init__(self, Py_ssize_t room):
        entries = np.zeros(2 * room + 1, np.dtype([("id", np.uint32), ("slot", np.int32)]))
        entries["id"] = <uint32_t>FREE
        self.entries = entries

    @property
    def nbytes(self):
        return sizeof(Entry) * self.entries.shape[0]

    cdef void forget(self, uint32_t id) noexcept nogil:
        """Delete an id, moving later ones of its chain back."""
        cdef Py_ssize_t size = self.entries.shape[0], hole = self.place(id), i = hole, walked
        while True:
            i += 1
            if i == size:
                i = 0
            if self.entries[i].id == FREE:
                break
            walked = i - self.home(self.entries[i].id)
            if walked < 0:
                walked += size
            if walked >= (i - hole if i > hole else i - hole + size):
                self.entries[hole] = self.entries[i]
                hole = i
        self.entries[hole].id = FREE
