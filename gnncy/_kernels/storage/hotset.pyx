"""Hash tables of node ids: access counts with least-count eviction, and numbering of distinct ids.

Ids are non-negative. The caller checks arguments and holds a lock: nothing here is safe against a second thread.
"""
import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from gnncy._kernels._hash cimport mix64


cdef inline Py_ssize_t find(const int64_t[::1] keys, int64_t key) noexcept nogil:
    """Where ``key`` is in an open table of 2**k keys (-1 is free), or the free place where it would go."""
    cdef Py_ssize_t mask = keys.shape[0] - 1
    cdef Py_ssize_t i = <Py_ssize_t>(mix64(<uint64_t>key) & <uint64_t>mask)
    while keys[i] != key and keys[i] != -1:
        i = (i + 1) & mask
    return i


def number(const int64_t[::1] ids, Py_ssize_t count, int64_t[::1] keys, int32_t[::1] values, int64_t[::1] unique,
           int32_t[::1] local):
    """Number distinct ids in the order of their first appearance, going on from ``count``.

    Writes each id's number to ``local`` and new ids to ``unique``; returns the new count. If ``unique`` is too short
    everything is left as it was before the call, and -1 comes back.
    """
    cdef Py_ssize_t k, i, n = ids.shape[0], before = count, room = unique.shape[0]
    cdef bint full = False
    with nogil:
        for k in range(n):
            i = find(keys, ids[k])
            if keys[i] == -1:
                if count == room:
                    full = True
                    break
                keys[i] = ids[k]
                values[i] = <int32_t>count
                unique[count] = ids[k]
                count += 1
            local[k] = values[i]
        if full:
            while count > before:  # the newest key ends every chain that it is on, so it can simply be cleared
                count -= 1
                keys[find(keys, unique[count])] = -1
            count = -1
    return count


cdef class Heap:
    """Slots with an id and a count each; the least (count, id) is on top.

    ``slots[:n]`` are the occupied ones in heap order, ``slots[n:]`` the free ones.
    """
    cdef public object ids, counts
    cdef int64_t[::1] id
    cdef double[::1] count
    cdef int32_t[::1] slots, place
    cdef public Py_ssize_t n

    def __init__(self, Py_ssize_t capacity):
        self.ids = np.full(capacity, -1, np.int64)
        self.counts = np.zeros(capacity)
        self.id = self.ids
        self.count = self.counts
        self.slots = np.arange(capacity, dtype=np.int32)
        self.place = np.arange(capacity, dtype=np.int32)
        self.n = 0

    cdef inline bint less(self, int32_t a, int32_t b) noexcept nogil:
        return self.count[a] < self.count[b] or (self.count[a] == self.count[b] and self.id[a] < self.id[b])

    cdef inline void put(self, Py_ssize_t i, int32_t slot) noexcept nogil:
        self.slots[i] = slot
        self.place[slot] = <int32_t>i

    cdef void up(self, Py_ssize_t i) noexcept nogil:
        cdef int32_t slot = self.slots[i]
        while i > 0 and self.less(slot, self.slots[(i - 1) // 2]):
            self.put(i, self.slots[(i - 1) // 2])
            i = (i - 1) // 2
        self.put(i, slot)

    cdef void down(self, Py_ssize_t i) noexcept nogil:
        cdef int32_t slot = self.slots[i]
        cdef Py_ssize_t child
        while True:
            child = 2 * i + 1
            if child >= self.n:
                break
            if child + 1 < self.n and self.less(self.slots[child + 1], self.slots[child]):
                child += 1
            if not self.less(self.slots[child], slot):
                break
            self.put(i, self.slots[child])
            i = child
        self.put(i, slot)

    cdef int32_t push(self, int64_t id, double count) noexcept nogil:
        cdef int32_t slot = self.slots[self.n]
        self.id[slot] = id
        self.count[slot] = count
        self.n = self.n + 1
        self.up(self.n - 1)
        return slot

    cdef void remove(self, int32_t slot) noexcept nogil:
        cdef Py_ssize_t i = self.place[slot]
        cdef int32_t last
        self.n = self.n - 1
        last = self.slots[self.n]
        self.put(self.n, slot)
        if last != slot:
            self.put(i, last)
            self.up(i)
            self.down(self.place[last])

    cdef void replace(self, int32_t slot, int64_t id, double count) noexcept nogil:
        self.id[slot] = id
        self.count[slot] = count
        self.up(self.place[slot])
        self.down(self.place[slot])

    cdef void rebuild(self) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(self.n // 2 - 1, -1, -1):
            self.down(i)


cdef class Table:
    """Counts of the cached ids and of a bounded number of ghosts: ids seen but not cached, least counts forgotten first.

    A count is a multiple of ``unit``, the weight of one access now. Decay makes the unit grow, so it touches nothing.
    """
    cdef readonly Heap cached, ghosts
    cdef public double unit
    cdef int64_t[::1] keys
    cdef int32_t[::1] values  # a cached slot, or -1 - a ghost slot
    cdef Py_ssize_t capacity, ghost_capacity

    def __init__(self, Py_ssize_t capacity, Py_ssize_t ghosts):
        cdef Py_ssize_t size = 8
        while size < 2 * (capacity + ghosts + 1):
            size *= 2
        self.capacity = capacity
        self.ghost_capacity = ghosts
        self.cached = Heap(capacity)
        self.ghosts = Heap(ghosts)
        self.keys = np.full(size, -1, np.int64)
        self.values = np.zeros(size, np.int32)
        self.unit = 1.0

    @property
    def nbytes(self):
        """Bytes that the table holds."""
        return self.keys.shape[0] * 12 + (self.capacity + self.ghost_capacity) * 24

    cdef void forget(self, int64_t id) noexcept nogil:
        """Delete a key, moving later ones of its chain back."""
        cdef Py_ssize_t mask = self.keys.shape[0] - 1
        cdef Py_ssize_t hole = find(self.keys, id), i = hole, home
        while True:
            i = (i + 1) & mask
            if self.keys[i] == -1:
                break
            home = <Py_ssize_t>(mix64(<uint64_t>self.keys[i]) & <uint64_t>mask)
            if ((i - home) & mask) >= ((i - hole) & mask):
                self.keys[hole] = self.keys[i]
                self.values[hole] = self.values[i]
                hole = i
        self.keys[hole] = -1

    cdef void store(self, int64_t id, int32_t value) noexcept nogil:
        cdef Py_ssize_t i = find(self.keys, id)
        self.keys[i] = id
        self.values[i] = value

    cdef void haunt(self, int64_t id, double count) noexcept nogil:
        """Remember an id that is in neither heap as a ghost, in place of the least one if there is no room."""
        cdef int32_t slot
        if self.ghost_capacity == 0:
            return
        if self.ghosts.n < self.ghost_capacity:
            slot = self.ghosts.push(id, count)
        else:
            slot = self.ghosts.slots[0]
            self.forget(self.ghosts.id[slot])
            self.ghosts.replace(slot, id, count)
        self.store(id, -1 - slot)

    cdef int32_t touch(self, int64_t id) noexcept nogil:
        """Count an access; returns the cached slot, or -1."""
        cdef Py_ssize_t i = find(self.keys, id)
        cdef int32_t slot
        if self.keys[i] == -1:
            self.haunt(id, self.unit)
            return -1
        slot = self.values[i]
        if slot >= 0:
            self.cached.count[slot] += self.unit
            self.cached.down(self.cached.place[slot])
            return slot
        slot = -1 - slot
        self.ghosts.count[slot] += self.unit
        self.ghosts.down(self.ghosts.place[slot])
        return -1

    cdef int32_t admit(self, int64_t id) noexcept nogil:
        """A cached slot for ``id``, or -1 if every cached id has a greater (count, id)."""
        cdef Py_ssize_t i = find(self.keys, id)
        cdef int32_t slot, ghost = -1
        cdef double count = 0, evicted_count
        cdef int64_t evicted
        if self.keys[i] != -1:
            if self.values[i] >= 0:
                return self.values[i]
            ghost = -1 - self.values[i]
            count = self.ghosts.count[ghost]
        if self.cached.n < self.capacity:
            if ghost >= 0:
                self.ghosts.remove(ghost)
            slot = self.cached.push(id, count)
            self.store(id, slot)
            return slot
        if self.capacity == 0:
            return -1
        slot = self.cached.slots[0]
        evicted = self.cached.id[slot]
        evicted_count = self.cached.count[slot]
        if count < evicted_count or (count == evicted_count and id < evicted):
            return -1
        if ghost >= 0:  # the two change places
            self.ghosts.replace(ghost, evicted, evicted_count)
            self.store(evicted, -1 - ghost)
        else:
            self.forget(evicted)
            self.haunt(evicted, evicted_count)
        self.cached.replace(slot, id, count)
        self.store(id, slot)
        return slot

    def record(self, const int64_t[::1] ids):
        """Count an access of each id."""
        cdef Py_ssize_t k, n = ids.shape[0]
        with nogil:
            for k in range(n):
                self.touch(ids[k])

    def contains(self, const int64_t[::1] ids, uint8_t[::1] mask):
        """Write 1 where the id is cached; counts nothing."""
        cdef Py_ssize_t i, k, n = ids.shape[0]
        with nogil:
            for k in range(n):
                i = find(self.keys, ids[k])
                mask[k] = self.keys[i] != -1 and self.values[i] >= 0

    def lookup(self, const int64_t[::1] ids, const uint8_t[:, ::1] rows, uint8_t[:, ::1] out, uint8_t[::1] mask):
        """Count an access of each id and copy the rows of the cached ones; returns how many there were."""
        cdef Py_ssize_t k, n = ids.shape[0], width = rows.shape[1], hits = 0
        cdef int32_t slot
        with nogil:
            for k in range(n):
                slot = self.touch(ids[k])
                mask[k] = slot >= 0
                if slot >= 0:
                    hits += 1
                    memcpy(&out[k, 0], &rows[slot, 0], <size_t>width)
        return hits

    def insert(self, const int64_t[::1] ids, const uint8_t[:, ::1] source, uint8_t[:, ::1] rows, uint8_t[::1] mask):
        """Store the rows of the ids that are admitted, one after the other."""
        cdef Py_ssize_t k, n = ids.shape[0], width = rows.shape[1]
        cdef int32_t slot
        with nogil:
            for k in range(n):
                slot = self.admit(ids[k])
                mask[k] = slot >= 0
                if slot >= 0:
                    memcpy(&rows[slot, 0], &source[k, 0], <size_t>width)

    def rescale(self):
        """Make the unit 1 again."""
        cdef Py_ssize_t i
        cdef double factor = 1 / self.unit
        with nogil:
            for i in range(self.capacity):
                self.cached.count[i] *= factor
            for i in range(self.ghost_capacity):
                self.ghosts.count[i] *= factor
            # Counts that rounded to the same value are ordered by id now.
            self.cached.rebuild()
            self.ghosts.rebuild()
            self.unit = 1

    def occupied(self):
        """Slots of the cached ids and of the ghosts, each by ascending id."""
        cached = np.asarray(self.cached.slots)[:self.cached.n]
        ghosts = np.asarray(self.ghosts.slots)[:self.ghosts.n]
        return cached[np.argsort(self.cached.ids[cached])], ghosts[np.argsort(self.ghosts.ids[ghosts])]

    def restore(self, const int64_t[::1] ids, const double[::1] counts, const int64_t[::1] ghost_ids,
                const double[::1] ghost_counts):
        """Fill an empty table; cached id k gets slot k."""
        cdef Py_ssize_t k
        for k in range(ids.shape[0]):
            self.store(ids[k], self.cached.push(ids[k], counts[k]))
        for k in range(ghost_ids.shape[0]):
            self.store(ghost_ids[k], -1 - self.ghosts.push(ghost_ids[k], ghost_counts[k]))
