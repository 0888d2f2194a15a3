"""A heap of ranks."""
import numpy as np

RANK = np.dtype([("key", np.float64), ("id", np.uint32), ("slot", np.int32)])


cdef class Heap:
    """Ranks with the least (key, id) on top, in groups of four children that share a cache line.

    Where ``place`` is given it keeps the position of each slot's rank.
    """

    def __init__(self, Py_ssize_t capacity, place=None):
        memory = np.empty(capacity + 4, RANK)
        self.ranks = memory[-(memory.ctypes.data // 16 + 1) % 4:][:capacity]  # ranks[1] begins a cache line
        self.placed = place is not None
        self.place = place
        self.n = 0
        self.steps = 0

    cdef void up(self, Py_ssize_t i, Rank rank) noexcept nogil:
        """Set the rank at ``i``, or above if it is less than its parent."""
        cdef Py_ssize_t parent
        while i > 0:
            parent = (i - 1) >> 2
            if not less(&rank, &self.ranks[parent]):
                break
            self.put(i, self.ranks[parent])
            i = parent
            self.steps += 1
        self.put(i, rank)

    cdef void down(self, Py_ssize_t i, Rank rank) noexcept nogil:
        """Set the rank at ``i``, or below if one of its children is less."""
        cdef Py_ssize_t child, least, other
        cdef Rank *ranks = &self.ranks[0]
        while True:
            least = 4 * i + 1
            if least + 4 <= self.n:
                other = least + 2 + less(&ranks[least + 3], &ranks[least + 2])
                least += less(&ranks[least + 1], &ranks[least])
                least += (other - least) * less(&ranks[other], &ranks[least])
            elif least < self.n:
                for child in range(least + 1, self.n):
                    if less(&ranks[child], &ranks[least]):
                        least = child
            else:
                break
            if not less(&ranks[least], &rank):
                break
            self.put(i, ranks[least])
            i = least
            self.steps += 1
        self.put(i, rank)

    cdef void move(self, Py_ssize_t i, Rank rank) noexcept nogil:
        """Set the rank at ``i``, or wherever it then belongs."""
        if i > 0 and less(&rank, &self.ranks[(i - 1) >> 2]):
            self.up(i, rank)
        else:
            self.down(i, rank)

    cdef void push(self, Rank rank) noexcept nogil:
        self.n += 1
        self.up(self.n - 1, rank)

    cdef void pop(self) noexcept nogil:
        self.n -= 1
        if self.n > 0:
            self.down(0, self.ranks[self.n])

    cdef void order(self) noexcept nogil:
        """Make a heap of ranks in any order."""
        cdef Py_ssize_t i
        for i in range(self.n - 1, -1, -1):
            self.down(i, self.ranks[i])
