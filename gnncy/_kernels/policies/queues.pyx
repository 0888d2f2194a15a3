"""First-in-first-out queues: LRU, CLOCK, SIEVE and S3-FIFO."""
import numpy as np

from libc.stdint cimport int32_t, int64_t, uint32_t

from gnncy._kernels._prefetch cimport prefetch
from gnncy._kernels.policies.index cimport Index
from gnncy._kernels.policies.policy cimport Policy


cdef struct Node:
    int32_t older
    int32_t newer
    uint32_t id
    int32_t mark


cdef struct Queue:
    int32_t oldest
    int32_t newest
    Py_ssize_t n


NODE = np.dtype([("older", np.int32), ("newer", np.int32), ("id", np.uint32), ("mark", np.int32)])


cdef class Linked(Policy):
    """Policies over first-in-first-out queues. Slots of ghosts follow those of rows."""
    cdef Node[::1] nodes
    cdef Queue[3] queues
    cdef int32_t[::1] spare  # a stack of free slots of rows, spare[:spares]
    cdef Py_ssize_t spares
    cdef int32_t hand  # SIEVE's

    def __init__(self, Py_ssize_t capacity, Py_ssize_t ghosts=0):
        cdef Py_ssize_t k
        self.capacity = capacity
        self.index = Index(capacity + ghosts)
        self.nodes = np.zeros(capacity + ghosts, NODE)
        self.spare = np.arange(capacity, dtype=np.int32)[::-1].copy()
        self.spares = capacity
        self.hand = -1
        for k in range(3):
            self.queues[k].oldest = self.queues[k].newest = -1
            self.queues[k].n = 0

    @property
    def n(self):
        return self.capacity - self.spares

    @property
    def nbytes(self):
        return self.index.nbytes + sizeof(Node) * self.nodes.shape[0] + 4 * self.capacity

    cdef void warm(self, int32_t slot) noexcept nogil:
        prefetch(&self.nodes[slot])

    cdef inline void push(self, Queue *queue, int32_t slot) noexcept nogil:
        self.nodes[slot].older = queue.newest
        self.nodes[slot].newer = -1
        if queue.newest >= 0:
            self.nodes[queue.newest].newer = slot
        else:
            queue.oldest = slot
        queue.newest = slot
        queue.n += 1

    cdef inline void unlink(self, Queue *queue, int32_t slot) noexcept nogil:
        cdef int32_t older = self.nodes[slot].older, newer = self.nodes[slot].newer
        if older >= 0:
            self.nodes[older].newer = newer
        else:
            queue.oldest = newer
        if newer >= 0:
            self.nodes[newer].older = older
        else:
            queue.newest = older
        queue.n -= 1

    cdef void hit(self, int32_t slot) noexcept nogil:
        """Take note of an access of a row."""
        self.nodes[slot].mark = 1

    cdef int32_t victim(self) noexcept nogil:
        """Choose one of the rows, of which there are some, and take it out of its queue; its slot."""
        return -1

    cdef void enter(self, int32_t slot) noexcept nogil:
        """Put a new row into its queue."""
        self.push(&self.queues[0], slot)

    cdef int32_t touch(self, uint32_t id) noexcept nogil:
        cdef int32_t slot = self.index.find(id)
        if slot < 0 or slot >= self.capacity:
            return -1
        self.hit(slot)
        return slot

    cdef int32_t admit(self, uint32_t id) noexcept nogil:
        cdef int32_t slot = self.where(id)
        if slot >= 0 or self.capacity == 0:
            return slot
        if self.spares == 0:
            self.drop()
        self.spares -= 1
        slot = self.spare[self.spares]
        self.nodes[slot].id = id
        self.nodes[slot].mark = 0
        self.enter(slot)
        self.index.store(id, slot)
        return slot

    cdef int64_t drop(self) noexcept nogil:
        cdef int32_t slot
        cdef uint32_t id
        if self.spares == self.capacity:
            return -1
        slot = self.victim()
        id = self.nodes[slot].id
        if self.index.find(id) == slot:  # it may be that of a ghost already
            self.index.forget(id)
        self.spare[self.spares] = slot
        self.spares += 1
        self.evictions += 1
        return id

    def slots(self):
        """Slots in use, queue by queue, the oldest first."""
        cdef Py_ssize_t i = 0, k
        cdef int32_t slot
        out = np.empty(self.queues[0].n + self.queues[1].n + self.queues[2].n, np.int32)
        cdef int32_t[::1] into = out
        for k in range(3):
            slot = self.queues[k].oldest
            while slot >= 0:
                into[i] = slot
                slot = self.nodes[slot].newer
                i += 1
        return out

    def resident(self):
        """Ids with a row, and their slots."""
        slots = self.slots()[:self.n]
        return np.asarray(self.nodes)["id"][slots].astype(np.int64), slots

    def state(self):
        """Ids and marks, queue by queue, the queues' lengths, and where in the first the hand is."""
        slots, nodes = self.slots(), np.asarray(self.nodes)
        return {"ids": nodes["id"][slots].astype(np.int64), "marks": nodes["mark"][slots],
                "lengths": np.array([self.queues[k].n for k in range(3)]),
                "hand": int(np.flatnonzero(slots == self.hand)[0]) if self.hand >= 0 else -1}

    def restore(self, *, const int64_t[::1] ids, const int32_t[::1] marks, const int64_t[::1] lengths,
                Py_ssize_t hand):
        """Fill an empty policy; the k-th id gets slot k."""
        cdef Py_ssize_t i = 0, k, j
        cdef int32_t slot
        for k in range(3):
            for j in range(lengths[k]):
                slot = <int32_t>(i if k < 2 else self.capacity + j)
                self.nodes[slot].id = <uint32_t>ids[i]
                self.nodes[slot].mark = marks[i]
                self.push(&self.queues[k], slot)
                self.index.store(<uint32_t>ids[i], slot)
                i += 1
        self.spares = self.capacity - self.queues[0].n - self.queues[1].n
        self.hand = <int32_t>hand


cdef class LRU(Linked):
    """The row not accessed for longest goes."""

    cdef void hit(self, int32_t slot) noexcept nogil:
        if self.nodes[slot].newer >= 0:
            self.unlink(&self.queues[0], slot)
            self.push(&self.queues[0], slot)

    cdef int32_t victim(self) noexcept nogil:
        cdef int32_t slot = self.queues[0].oldest
        self.unlink(&self.queues[0], slot)
        return slot


cdef class Clock(Linked):
    """The oldest row goes; one accessed since it was last looked at counts as new."""

    cdef int32_t victim(self) noexcept nogil:
        cdef int32_t slot
        while True:
            slot = self.queues[0].oldest
            self.unlink(&self.queues[0], slot)
            if not self.nodes[slot].mark:
                return slot
            self.nodes[slot].mark = 0
            self.push(&self.queues[0], slot)


cdef class Sieve(Linked):
    """A hand goes from old to new, spares rows accessed since it last came by, and takes the first other one."""

    cdef int32_t victim(self) noexcept nogil:
        cdef int32_t slot = self.hand if self.hand >= 0 else self.queues[0].oldest
        while self.nodes[slot].mark:
            self.nodes[slot].mark = 0
            slot = self.nodes[slot].newer
            if slot < 0:
                slot = self.queues[0].oldest
        self.hand = self.nodes[slot].newer
        self.unlink(&self.queues[0], slot)
        return slot


cdef class S3FIFO(Linked):
    """A small queue for what is new, a main one for what came back, ghosts of what left the small one."""
    cdef Py_ssize_t main_capacity

    def __init__(self, Py_ssize_t capacity):
        self.main_capacity = max(capacity - max(capacity // 10, 1), 0)
        Linked.__init__(self, capacity, self.main_capacity)

    cdef void hit(self, int32_t slot) noexcept nogil:
        if self.nodes[slot].mark < 3:
            self.nodes[slot].mark += 1

    cdef void haunt(self, uint32_t id) noexcept nogil:
        cdef Queue *ghosts = &self.queues[2]
        cdef int32_t slot
        if self.main_capacity == 0:
            return
        if ghosts.n == self.main_capacity:
            slot = ghosts.oldest
            self.unlink(ghosts, slot)
            self.index.forget(self.nodes[slot].id)
        else:
            slot = <int32_t>(self.capacity + ghosts.n)
        self.nodes[slot].id = id
        self.nodes[slot].mark = 0
        self.push(ghosts, slot)
        self.index.store(id, slot)

    cdef int32_t victim(self) noexcept nogil:
        cdef Queue *small = &self.queues[0]
        cdef Queue *main = &self.queues[1]
        cdef int32_t slot
        while True:
            if main.n > self.main_capacity or small.n == 0:
                slot = main.oldest
                self.unlink(main, slot)
                if self.nodes[slot].mark == 0:
                    return slot
                self.nodes[slot].mark -= 1
                self.push(main, slot)
            else:
                slot = small.oldest
                self.unlink(small, slot)
                if self.nodes[slot].mark < 2:
                    self.haunt(self.nodes[slot].id)
                    return slot
                self.nodes[slot].mark = 0
                self.push(main, slot)

    cdef void enter(self, int32_t slot) noexcept nogil:
        cdef int32_t ghost = self.index.find(self.nodes[slot].id)
        if ghost < 0:
            self.push(&self.queues[0], slot)
            return
        self.push(&self.queues[1], slot)
        self.bury(ghost)

    cdef void bury(self, int32_t ghost) noexcept nogil:
        """Forget a ghost; the last slot of ghosts is moved into the gap, so that those in use stay together."""
        cdef Queue *ghosts = &self.queues[2]
        cdef int32_t last = <int32_t>(self.capacity + ghosts.n - 1)
        cdef Node *node
        self.unlink(ghosts, ghost)
        if ghost == last:
            return
        node = &self.nodes[last]
        self.nodes[ghost] = node[0]
        if node.older >= 0:
            self.nodes[node.older].newer = ghost
        else:
            ghosts.oldest = ghost
        if node.newer >= 0:
            self.nodes[node.newer].older = ghost
        else:
            ghosts.newest = ghost
        self.index.store(node.id, ghost)
