"""Known uses: the row needed last goes first."""
import numpy as np

from libc.stdint cimport int32_t, int64_t, uint32_t

from gnncy._kernels.policies.heap cimport Heap, Rank
from gnncy._kernels.policies.index cimport FREE, Index
from gnncy._kernels.policies.policy cimport Policy

cdef double UNKNOWN = -2.0 ** 52  # rank of a row without a known use, before its time of last use is added


cdef struct Use:
    int64_t position
    int32_t next


USE = np.dtype([("position", np.int64), ("next", np.int32)], align=True)


cdef class Belady(Policy):
    """The row whose next known use is farthest goes, before all those without one, the longest unused first.

    Every id that has a row or a known use has a slot. Its known uses are a chain, consumed by its accesses.
    """
    cdef Heap heap
    cdef int32_t[::1] vacant  # slots without a row, vacant[n:]
    cdef double[::1] used  # when each row was last accessed
    cdef int32_t[::1] first, last  # known use of each slot, -1 if there is none
    cdef Use[::1] uses
    cdef int32_t[::1] spare  # a stack of free slots of ids without a row, spare[:spares]
    cdef int32_t unused  # a chain of free uses
    cdef Py_ssize_t spares
    cdef readonly Py_ssize_t known
    cdef int64_t position, now

    def __init__(self, Py_ssize_t capacity):
        self.capacity = capacity
        self.heap = Heap(capacity, np.zeros(capacity, np.int32))
        self.vacant = np.arange(capacity, dtype=np.int32)
        self.used = np.zeros(capacity)
        self.position = self.now = 0
        self.clear(1024)

    @property
    def n(self):
        return self.heap.n

    @property
    def nbytes(self):
        return self.index.nbytes + (sizeof(Rank) + 24) * self.capacity + (sizeof(Use) + 12) * self.uses.shape[0]

    def clear(self, Py_ssize_t room):
        """Forget all known uses, and make place for so many."""
        cdef Py_ssize_t k
        cdef int32_t slot
        self.index = Index(self.capacity + room)
        self.first = np.full(self.capacity + room, -1, np.int32)
        self.last = np.full(self.capacity + room, -1, np.int32)
        uses = np.zeros(room, USE)
        uses["next"] = np.arange(1, room + 1)
        self.uses = uses
        self.unused = 0
        self.spare = np.arange(self.capacity, self.capacity + room, dtype=np.int32)
        self.spares = room
        self.known = 0
        for k in range(self.heap.n):
            slot = self.heap.ranks[k].slot
            self.heap.ranks[k].key = UNKNOWN + self.used[slot]
            self.index.store(self.heap.ranks[k].id, slot)
        self.heap.order()

    def upcoming(self):
        """Ids of the known uses, in their order."""
        cdef Py_ssize_t i, k = 0
        cdef int32_t use
        ids, positions = np.empty((2, self.known), np.int64)
        cdef int64_t[::1] id = ids, position = positions
        for i in range(self.index.entries.shape[0]):
            if self.index.entries[i].id != FREE:
                use = self.first[self.index.entries[i].slot]
                while use >= 0:
                    id[k] = self.index.entries[i].id
                    position[k] = self.uses[use].position
                    use = self.uses[use].next
                    k += 1
        return ids[np.argsort(positions)]

    def foresee(self, const int64_t[::1] ids):
        """Append uses to the known ones."""
        cdef Py_ssize_t k
        cdef int32_t slot, use
        if self.known + ids.shape[0] > self.uses.shape[0]:
            ids = np.concatenate([self.upcoming(), ids])
            self.clear(2 * ids.shape[0])
        with nogil:
            for k in range(ids.shape[0]):
                slot = self.index.find(<uint32_t>ids[k])
                if slot < 0:
                    slot = self.haunt(<uint32_t>ids[k])
                use = self.unused
                self.unused = self.uses[use].next
                self.uses[use].position = self.position
                self.uses[use].next = -1
                self.position += 1
                if self.first[slot] >= 0:
                    self.uses[self.last[slot]].next = use
                    self.last[slot] = use
                else:
                    self.first[slot] = self.last[slot] = use
                    if slot < self.capacity:
                        self.heap.move(self.heap.place[slot], self.rank(slot, <uint32_t>ids[k]))
            self.known += ids.shape[0]

    cdef int32_t haunt(self, uint32_t id) noexcept nogil:
        """A slot for an id without a row."""
        self.spares -= 1
        self.index.store(id, self.spare[self.spares])
        return self.spare[self.spares]

    cdef inline double key(self, int32_t use, double used) noexcept nogil:
        return -<double>self.uses[use].position if use >= 0 else UNKNOWN + used

    cdef inline Rank rank(self, int32_t slot, uint32_t id) noexcept nogil:
        cdef Rank rank
        rank.key = self.key(self.first[slot], self.used[slot])
        rank.id = id
        rank.slot = slot
        return rank

    cdef int32_t touch(self, uint32_t id) noexcept nogil:
        cdef int32_t slot = self.index.find(id), use
        self.now += 1
        if slot < 0:
            return -1
        use = self.first[slot]
        if use >= 0:
            self.first[slot] = self.uses[use].next
            self.uses[use].next = self.unused
            self.unused = use
            self.known -= 1
        if slot < self.capacity:
            self.used[slot] = <double>self.now
            self.heap.move(self.heap.place[slot], self.rank(slot, id))
            return slot
        if self.first[slot] < 0:
            self.release(slot, id)
        return -1

    cdef void release(self, int32_t ghost, uint32_t id) noexcept nogil:
        """Take the slot from an id without a row."""
        self.first[ghost] = -1
        self.spare[self.spares] = ghost
        self.spares += 1
        self.index.forget(id)

    cdef int32_t admit(self, uint32_t id) noexcept nogil:
        cdef int32_t slot = self.index.find(id), first = -1, last = -1
        cdef double key
        if 0 <= slot < self.capacity:
            return slot
        if self.capacity == 0:
            return -1
        if slot >= 0:
            first = self.first[slot]
            last = self.last[slot]
        key = self.key(first, <double>self.now)
        if self.heap.n == self.capacity and key <= self.heap.ranks[0].key:
            return -1
        if slot >= 0:
            self.release(slot, id)
        if self.heap.n == self.capacity:
            self.drop()
        return self.enter(id, first, last, <double>self.now)

    cdef int32_t enter(self, uint32_t id, int32_t first, int32_t last, double used) noexcept nogil:
        cdef int32_t slot = self.vacant[self.heap.n]
        self.first[slot] = first
        self.last[slot] = last
        self.used[slot] = used
        self.heap.push(self.rank(slot, id))
        self.index.store(id, slot)
        return slot

    cdef int64_t drop(self) noexcept nogil:
        cdef Rank rank
        cdef int32_t ghost
        if self.heap.n == 0:
            return -1
        rank = self.heap.ranks[0]
        self.heap.pop()
        self.vacant[self.heap.n] = rank.slot
        self.index.forget(rank.id)
        if self.first[rank.slot] >= 0:
            ghost = self.haunt(rank.id)
            self.first[ghost] = self.first[rank.slot]
            self.last[ghost] = self.last[rank.slot]
        self.evictions += 1
        return rank.id

    def resident(self):
        """Ids with a row, and their slots."""
        ranks = np.sort(np.asarray(self.heap.ranks)[:self.n], order="id")
        return ranks["id"].astype(np.int64), ranks["slot"].copy()

    def state(self):
        """Ids with a row, when each was last accessed, the time, and the known uses."""
        ids, slots = self.resident()
        return {"ids": ids, "used": np.asarray(self.used)[slots], "now": self.now, "upcoming": self.upcoming()}

    def restore(self, *, const int64_t[::1] ids, const double[::1] used, int64_t now, const int64_t[::1] upcoming):
        """Fill an empty policy; the k-th id gets slot k."""
        cdef Py_ssize_t k
        self.now = now
        for k in range(ids.shape[0]):
            self.enter(<uint32_t>ids[k], -1, -1, used[k])
        self.foresee(upcoming)
