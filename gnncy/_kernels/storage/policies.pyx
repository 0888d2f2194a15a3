"""Cache policies: which id holds which of a bounded number of slots, decided access by access.

A policy is told of accesses (``touch``) and of rows on offer (``admit``). Slots 0 .. capacity-1 are for rows; those
above are ghosts, ids that a policy remembers without a row. Ids lie below 2**32 - 1. Every decision is a function of the
calls before it alone. The caller checks arguments and holds a lock: nothing here is safe against a second thread.
"""
import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from gnncy._kernels._hash cimport mix64
from gnncy._kernels._prefetch cimport prefetch

cdef enum:
    AHEAD = 24  # ids of a batch whose place in the index is asked for ahead of need
    NEAR = 8  # and whose slot
    SMALL = 1024  # counts that are ordered altogether
    PART = 16  # of more, about the least of SHARE are: the PART-th of a sample of PART * SHARE is the last one
    SHARE = 32

cdef uint32_t FREE = 0xFFFFFFFF
cdef double LARGEST = 1e100  # unit of count above which all counts are divided by it
cdef double UNKNOWN = -2.0 ** 52  # Belady's rank of a row without a known use, before its time of last use is added


cdef struct Entry:
    uint32_t id
    int32_t slot


cdef struct Rank:
    double key
    uint32_t id
    int32_t slot


cdef struct Node:
    int32_t older
    int32_t newer
    uint32_t id
    int32_t mark


cdef struct Queue:
    int32_t oldest
    int32_t newest
    Py_ssize_t n


cdef struct Use:
    int64_t position
    int32_t next


RANK = np.dtype([("key", np.float64), ("id", np.uint32), ("slot", np.int32)])
NODE = np.dtype([("older", np.int32), ("newer", np.int32), ("id", np.uint32), ("mark", np.int32)])
USE = np.dtype([("position", np.int64), ("next", np.int32)], align=True)


cdef class Index:
    """Where each id is: an open hash table, at most half full, without tombstones."""
    cdef Entry[::1] entries

    def __init__(self, Py_ssize_t room):
        entries = np.zeros(2 * room + 1, np.dtype([("id", np.uint32), ("slot", np.int32)]))
        entries["id"] = FREE
        self.entries = entries

    @property
    def nbytes(self):
        return sizeof(Entry) * self.entries.shape[0]

    cdef inline Py_ssize_t home(self, uint32_t id) noexcept nogil:
        return <Py_ssize_t>(((mix64(id) >> 32) * <uint64_t>self.entries.shape[0]) >> 32)

    cdef inline Py_ssize_t place(self, uint32_t id) noexcept nogil:
        cdef Py_ssize_t i = self.home(id)
        while self.entries[i].id != id and self.entries[i].id != FREE:
            i += 1
            if i == self.entries.shape[0]:
                i = 0
        return i

    cdef inline int32_t find(self, uint32_t id) noexcept nogil:
        cdef Py_ssize_t i = self.place(id)
        return self.entries[i].slot if self.entries[i].id == id else -1

    cdef inline void store(self, uint32_t id, int32_t slot) noexcept nogil:
        cdef Py_ssize_t i = self.place(id)
        self.entries[i].id = id
        self.entries[i].slot = slot

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


cdef class Heap:
    """Ranks with the least (key, id) on top, in groups of four children that share a cache line.

    Where ``place`` is given it keeps the position of each slot's rank.
    """
    cdef Rank[::1] ranks
    cdef int32_t[::1] place
    cdef bint placed
    cdef readonly Py_ssize_t n, steps  # steps: levels gone up or down so far

    def __init__(self, Py_ssize_t capacity, place=None):
        memory = np.empty(capacity + 4, RANK)
        self.ranks = memory[-(memory.ctypes.data // 16 + 1) % 4:][:capacity]  # ranks[1] begins a cache line
        self.placed = place is not None
        self.place = place
        self.n = 0
        self.steps = 0

    @staticmethod
    cdef inline bint less(Rank *a, Rank *b) noexcept nogil:
        return (a.key < b.key) | ((a.key == b.key) & (a.id < b.id))  # without branches, which would be mispredicted

    cdef inline void put(self, Py_ssize_t i, Rank rank) noexcept nogil:
        self.ranks[i] = rank
        if self.placed:
            self.place[rank.slot] = <int32_t>i

    cdef void up(self, Py_ssize_t i, Rank rank) noexcept nogil:
        """Set the rank at ``i``, or above if it is less than its parent."""
        cdef Py_ssize_t parent
        while i > 0:
            parent = (i - 1) >> 2
            if not Heap.less(&rank, &self.ranks[parent]):
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
                other = least + 2 + Heap.less(&ranks[least + 3], &ranks[least + 2])
                least += Heap.less(&ranks[least + 1], &ranks[least])
                least += (other - least) * Heap.less(&ranks[other], &ranks[least])
            elif least < self.n:
                for child in range(least + 1, self.n):
                    if Heap.less(&ranks[child], &ranks[least]):
                        least = child
            else:
                break
            if not Heap.less(&ranks[least], &rank):
                break
            self.put(i, ranks[least])
            i = least
            self.steps += 1
        self.put(i, rank)

    cdef void move(self, Py_ssize_t i, Rank rank) noexcept nogil:
        """Set the rank at ``i``, or wherever it then belongs."""
        if i > 0 and Heap.less(&rank, &self.ranks[(i - 1) >> 2]):
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


cdef class Policy:
    """What all policies share: the loops over batches of ids."""
    cdef Index index
    cdef readonly Py_ssize_t capacity, evictions

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

    cdef inline void foretell(self, const int64_t[::1] ids, Py_ssize_t k) noexcept nogil:
        cdef int32_t slot
        if k + AHEAD < ids.shape[0]:
            prefetch(&self.index.entries[self.index.home(<uint32_t>ids[k + AHEAD])])
        if k + NEAR < ids.shape[0]:
            slot = self.index.find(<uint32_t>ids[k + NEAR])
            if slot >= 0:
                self.warm(slot)

    def lookup(self, const int64_t[::1] ids, int32_t[::1] slots):
        """Access each id in turn, and write its slot or -1."""
        cdef Py_ssize_t k
        with nogil:
            for k in range(ids.shape[0]):
                self.foretell(ids, k)
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
                self.foretell(ids, k)
                slots[k] = self.admit(<uint32_t>ids[k])

    def replay(self, const int64_t[::1] ids, uint8_t[::1] hit):
        """Access each id in turn and offer it if it has no row; write whether it had."""
        cdef Py_ssize_t k
        with nogil:
            for k in range(ids.shape[0]):
                self.foretell(ids, k)
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
        if not Heap.less(&self.pivot, &self.slots[slot]):
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
            if now.id != rank.id or now.key == INFINITY or Heap.less(&self.pivot, &now):
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
                if Heap.less(&rank, &lowest[PART - 1]):
                    i = PART - 1
                    while i > 0 and Heap.less(&rank, &lowest[i - 1]):
                        lowest[i] = lowest[i - 1]
                        i -= 1
                    lowest[i] = rank
            self.pivot = lowest[PART - 1]
        for i in range(self.capacity):
            if self.slots[i].key <= self.pivot.key and self.slots[i].key < INFINITY:
                if not Heap.less(&self.pivot, &self.slots[i]):
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
