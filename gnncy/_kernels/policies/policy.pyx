"""What all policies share, and the policy that never changes."""
import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from gnncy._kernels._prefetch cimport prefetch
from gnncy._kernels.policies.index cimport Index

cdef enum:
    AHEAD = 24  # ids of a batch whose place in the index is asked for ahead of need
    NEAR = 8  # and whose slot


cdef inline void foretell(Policy policy, const int64_t[::1] ids, Py_ssize_t k) noexcept nogil:
    """Ask for the memory that later accesses of the batch will need."""
    cdef int32_t slot
    if k + AHEAD < ids.shape[0]:
        prefetch(&policy.index.entries[policy.index.home(<uint32_t>ids[k + AHEAD])])
    if k + NEAR < ids.shape[0]:
        slot = policy.index.find(<uint32_t>ids[k + NEAR])
        if slot >= 0:
            policy.warm(slot)


cdef class Policy:
    """What all policies share: the loops over batches of ids."""

    cdef int32_t touch(self, uint32_t id) noexcept nogil:
        """Take note of an access; the id's slot, or -1 if it has no row."""
        return -1

    cdef int32_t admit(self, uint32_t id) noexcept nogil:
        """The slot for the id's row, evicting another if need be, or -1 if the row is not wanted."""
        return -1

    cdef int64_t drop(self) noexcept nogil:
        """Evict one row; its id, or -1 if there is none."""
        return -1

    cdef int32_t where(self, uint32_t id) noexcept nogil:
        cdef int32_t slot = self.index.find(id)
        return slot if slot < self.capacity else -1

    cdef void warm(self, int32_t slot) noexcept nogil:
        """Ask for the memory that an access of the slot will need."""
        pass

    def lookup(self, const int64_t[::1] ids, int32_t[::1] slots):
        """Access each id in turn, and write its slot or -1."""
        cdef Py_ssize_t k
        with nogil:
            for k in range(ids.shape[0]):
                foretell(self, ids, k)
                slots[k] = self.touch(<uint32_t>ids[k])

    def find(self, const int64_t[::1] ids, int32_t[::1] slots):
        """Write each id's slot or -1; nothing is accessed."""
        cdef Py_ssize_t k
        with nogil:
            for k in range(ids.shape[0]):
                if k + AHEAD < ids.shape[0]:
                    prefetch(&self.index.entries[self.index.home(<uint32_t>ids[k + AHEAD])])
                slots[k] = self.where(<uint32_t>ids[k])

    def insert(self, const int64_t[::1] ids, int32_t[::1] slots):
        """Offer each id in turn, and write the slot for its row or -1."""
        cdef Py_ssize_t k
        with nogil:
            for k in range(ids.shape[0]):
                foretell(self, ids, k)
                slots[k] = self.admit(<uint32_t>ids[k])

    def replay(self, const int64_t[::1] ids, uint8_t[::1] hit):
        """Access each id in turn and offer it if it has no row; write whether it had."""
        cdef Py_ssize_t k
        with nogil:
            for k in range(ids.shape[0]):
                foretell(self, ids, k)
                hit[k] = self.touch(<uint32_t>ids[k]) >= 0
                if not hit[k]:
                    self.admit(<uint32_t>ids[k])

    def evict(self):
        """Evict one row; its id, or -1 if there is none."""
        return self.drop()


cdef class Static(Policy):
    """The same ids for ever, in slots by their order."""
    cdef uint8_t[::1] present
    cdef uint32_t[::1] ids
    cdef readonly Py_ssize_t n
    cdef Py_ssize_t end  # no row beyond it

    @property
    def nbytes(self):
        return self.index.nbytes + 5 * self.capacity

    def __init__(self, const int64_t[::1] ids):
        cdef Py_ssize_t k
        self.capacity = ids.shape[0]
        self.index = Index(self.capacity)
        self.present = np.zeros(self.capacity, np.uint8)
        self.ids = np.asarray(ids).astype(np.uint32)
        for k in range(self.capacity):
            self.index.store(self.ids[k], <int32_t>k)

    cdef int32_t where(self, uint32_t id) noexcept nogil:
        cdef int32_t slot = self.index.find(id)
        return slot if slot >= 0 and self.present[slot] else -1

    cdef int32_t touch(self, uint32_t id) noexcept nogil:
        return self.where(id)

    cdef int32_t admit(self, uint32_t id) noexcept nogil:
        cdef int32_t slot = self.index.find(id)
        if slot >= 0 and not self.present[slot]:
            self.present[slot] = 1
            self.n += 1
            self.end = max(self.end, slot + 1)
        return slot

    cdef int64_t drop(self) noexcept nogil:
        while self.end > 0:
            self.end -= 1
            if self.present[self.end]:
                self.present[self.end] = 0
                self.n -= 1
                self.evictions += 1
                return self.ids[self.end]
        return -1

    def resident(self):
        """Ids with a row, and their slots."""
        slots = np.flatnonzero(self.present).astype(np.int32)
        return np.asarray(self.ids)[slots].astype(np.int64), slots

    def state(self):
        return {"ids": self.resident()[0]}

    def restore(self, *, ids):
        self.insert(ids, np.empty(len(ids), np.int32))
