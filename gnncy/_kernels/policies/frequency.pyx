"""Decayed counts of accesses."""
import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from gnncy._kernels._hash cimport mix64
from gnncy._kernels._prefetch cimport prefetch
from gnncy._kernels.policies.heap cimport Heap, Rank, less
from gnncy._kernels.policies.index cimport FREE, Index
from gnncy._kernels.policies.policy cimport Policy

from gnncy._kernels.policies.heap import RANK

cdef enum:
    SMALL = 1024  # counts that are ordered altogether
    PART = 16  # of more, about the least of SHARE are: the PART-th of a sample of PART * SHARE is the last one
    SHARE = 32

cdef double LARGEST = 1e100  # unit of count above which all counts are divided by it


cdef class Counts:
    """Counts of at most ``capacity`` ids in slots, and quick access to the least (count, id).

    Only a small part is kept in order: the front, a heap with all slots up to a pivot near the least 32nd of them. Counts
    may rise unnoticed, so an entry is checked when it comes to the top, and dropped if it has left the front or its
    slot has another id. An empty front is filled anew by one scan, which the entries used up have paid for: that is
    O(log n) an operation, and all but the scan happens in a small part of memory.
    """
    cdef Rank[::1] slots  # the key is the count, INFINITY where the slot is free
    cdef int32_t[::1] spare  # a stack of free slots, spare[:spares]
    cdef Py_ssize_t spares, capacity
    cdef Heap front
    cdef Rank pivot
    cdef uint64_t draws
    cdef readonly Py_ssize_t scanned

    def __init__(self, Py_ssize_t capacity):
        self.capacity = self.spares = capacity
        slots = np.zeros(capacity, RANK)
        slots["key"] = np.inf
        slots["slot"] = np.arange(capacity)
        self.slots = slots
        self.spare = np.arange(capacity, dtype=np.int32)[::-1].copy()
        self.front = Heap(capacity + SMALL)
        self.draws = 0
        self.scanned = 0
        self.restart()

    cdef void restart(self) noexcept nogil:
        """Begin with an empty front."""
        self.front.n = 0
        self.pivot.key = -1
        self.pivot.id = 0

    cdef inline void set(self, int32_t slot, uint32_t id, double count) noexcept nogil:
        self.slots[slot].key = count
        self.slots[slot].id = id
        if not less(&self.pivot, &self.slots[slot]):
            if self.front.n < self.front.ranks.shape[0]:
                self.front.push(self.slots[slot])
            else:
                self.restart()

    cdef int32_t add(self, uint32_t id, double count) noexcept nogil:
        self.spares -= 1
        self.set(self.spare[self.spares], id, count)
        return self.spare[self.spares]

    cdef void remove(self, int32_t slot) noexcept nogil:
        self.slots[slot].key = INFINITY
        self.spare[self.spares] = slot
        self.spares += 1

    cdef int32_t least(self) noexcept nogil:
        """The slot with the least (count, id), of which there must be one."""
        cdef Rank rank, now
        while True:
            if self.front.n == 0:
                self.fill()
            rank = self.front.ranks[0]
            now = self.slots[rank.slot]
            if now.id != rank.id or now.key == INFINITY or less(&self.pivot, &now):
                self.front.pop()
            elif now.key == rank.key:
                return rank.slot
            else:
                self.front.down(0, now)

    cdef void fill(self) noexcept nogil:
        """Choose a pivot by a sample, and put into the empty front all that do not exceed it."""
        cdef Py_ssize_t i, _k
        cdef Rank[PART] lowest
        cdef Rank rank
        self.pivot.key = INFINITY
        self.pivot.id = FREE
        if self.capacity - self.spares > SMALL:
            for i in range(PART):
                lowest[i] = self.pivot
            for _k in range(PART * SHARE):
                rank = self.slots[<Py_ssize_t>(mix64(self.draws) % <uint64_t>self.capacity)]
                self.draws += 1
                if less(&rank, &lowest[PART - 1]):
                    i = PART - 1
                    while i > 0 and less(&rank, &lowest[i - 1]):
                        lowest[i] = lowest[i - 1]
                        i -= 1
                    lowest[i] = rank
            self.pivot = lowest[PART - 1]
        for i in range(self.capacity):
            if self.slots[i].key <= self.pivot.key and self.slots[i].key < INFINITY:
                if not less(&self.pivot, &self.slots[i]):
                    self.front.ranks[self.front.n] = self.slots[i]
                    self.front.n += 1
        self.front.order()
        self.scanned += self.capacity

    cdef void scale(self, double factor) noexcept nogil:
        """Multiply all counts."""
        cdef Py_ssize_t i
        for i in range(self.capacity):
            self.slots[i].key *= factor
        self.restart()

    def sorted(self):
        """Ids and slots, by ascending id."""
        slots = np.asarray(self.slots)
        slots = np.sort(slots[slots["key"] < np.inf], order="id")
        return slots["id"].astype(np.int64), slots["slot"].copy()

    @property
    def nbytes(self):
        """Bytes held, with a front that is full."""
        return (2 * sizeof(Rank) + 4) * self.capacity + sizeof(Rank) * SMALL

    @property
    def steps(self):
        """Levels of the heap climbed, and slots scanned."""
        return self.front.steps + self.scanned


cdef class Frequency(Policy):
    """The greatest decayed counts of accesses stay; those of a bounded number of other ids, ghosts, are remembered.

    A count is a multiple of ``unit``, the weight of one access now, so decay touches nothing.
    """
    cdef readonly Counts cached, ghosts
    cdef readonly double unit

    def __init__(self, Py_ssize_t capacity, Py_ssize_t ghosts):
        self.capacity = capacity
        self.index = Index(capacity + ghosts)
        self.cached = Counts(capacity)
        self.ghosts = Counts(ghosts)
        self.unit = 1

    @property
    def n(self):
        return self.capacity - self.cached.spares

    @property
    def nbytes(self):
        return self.index.nbytes + self.cached.nbytes + self.ghosts.nbytes

    @property
    def steps(self):
        """Steps taken to find the least counts."""
        return self.cached.steps + self.ghosts.steps

    cdef void warm(self, int32_t slot) noexcept nogil:
        if slot < self.capacity:
            prefetch(&self.cached.slots[slot])
        else:
            prefetch(&self.ghosts.slots[slot - self.capacity])

    cdef void haunt(self, uint32_t id, double count) noexcept nogil:
        """Remember an id that has no slot as a ghost, in place of the least one if there is no room."""
        cdef int32_t ghost
        if self.ghosts.spares > 0:
            ghost = self.ghosts.add(id, count)
        elif self.ghosts.capacity > 0:
            ghost = self.ghosts.least()
            self.index.forget(self.ghosts.slots[ghost].id)
            self.ghosts.set(ghost, id, count)
        else:
            return
        self.index.store(id, <int32_t>self.capacity + ghost)

    cdef int32_t touch(self, uint32_t id) noexcept nogil:
        cdef int32_t slot = self.index.find(id)
        if slot >= self.capacity:
            self.ghosts.slots[slot - self.capacity].key += self.unit
        elif slot >= 0:
            self.cached.slots[slot].key += self.unit
            return slot
        elif self.capacity > 0:
            self.haunt(id, self.unit)
        return -1

    cdef int32_t admit(self, uint32_t id) noexcept nogil:
        cdef int32_t slot = self.index.find(id), ghost = slot - <int32_t>self.capacity, place
        cdef uint32_t evicted
        cdef double count = 0, least
        if 0 <= slot < self.capacity or self.capacity == 0:
            return slot
        if slot >= 0:
            count = self.ghosts.slots[ghost].key
        if self.cached.spares > 0:
            if slot >= 0:
                self.ghosts.remove(ghost)
            slot = self.cached.add(id, count)
            self.index.store(id, slot)
            return slot
        place = self.cached.least()
        evicted = self.cached.slots[place].id
        least = self.cached.slots[place].key
        if count < least or (count == least and id < evicted):
            return -1
        self.evictions += 1
        self.cached.set(place, id, count)
        if slot >= 0:  # the two change places
            self.ghosts.set(ghost, evicted, least)
            self.index.store(evicted, slot)
        else:
            self.index.forget(evicted)
            self.haunt(evicted, least)
        self.index.store(id, place)
        return place

    cdef int64_t drop(self) noexcept nogil:
        cdef int32_t slot
        cdef Rank least
        if self.cached.spares == self.capacity:
            return -1
        slot = self.cached.least()
        least = self.cached.slots[slot]
        self.index.forget(least.id)
        self.haunt(least.id, least.key)
        self.cached.remove(slot)
        self.evictions += 1
        return least.id

    def decay(self, double factor):
        """Multiply all counts by ``factor``."""
        self.unit /= factor
        if self.unit > LARGEST:
            self.cached.scale(1 / self.unit)
            self.ghosts.scale(1 / self.unit)
            self.unit = 1

    def resident(self):
        """Ids with a row, and their slots."""
        return self.cached.sorted()

    def state(self):
        """Ids and counts of rows and of ghosts, each by ascending id."""
        (ids, slots), (ghosts, haunted) = self.cached.sorted(), self.ghosts.sorted()
        return {"ids": ids, "counts": np.asarray(self.cached.slots)["key"][slots], "ghost_ids": ghosts,
                "ghost_counts": np.asarray(self.ghosts.slots)["key"][haunted], "unit": self.unit}

    def restore(self, *, const int64_t[::1] ids, const double[::1] counts, const int64_t[::1] ghost_ids,
                const double[::1] ghost_counts, double unit):
        """Fill an empty policy; the k-th id gets slot k."""
        cdef Py_ssize_t k
        self.unit = unit
        for k in range(ids.shape[0]):
            self.index.store(<uint32_t>ids[k], self.cached.add(<uint32_t>ids[k], counts[k]))
        for k in range(ghost_ids.shape[0]):
            self.haunt(<uint32_t>ghost_ids[k], ghost_counts[k])
