from libc.stdint cimport int32_t, uint32_t


cdef struct Rank:
    double key
    uint32_t id
    int32_t slot


cdef inline bint less(Rank *a, Rank *b) noexcept nogil:
    return (a.key < b.key) | ((a.key == b.key) & (a.id < b.id))  # without branches, which would be mispredicted


cdef class Heap:
    cdef Rank[::1] ranks
    cdef int32_t[::1] place
    cdef bint placed
    cdef readonly Py_ssize_t n, steps  # steps: levels gone up or down so far

    cdef inline void put(self, Py_ssize_t i, Rank rank) noexcept nogil:
        self.ranks[i] = rank
        if self.placed:
            self.place[rank.slot] = <int32_t>i

    cdef void up(self, Py_ssize_t i, Rank rank) noexcept nogil
    cdef void down(self, Py_ssize_t i, Rank rank) noexcept nogil
    cdef void move(self, Py_ssize_t i, Rank rank) noexcept nogil
    cdef void push(self, Rank rank) noexcept nogil
    cdef void pop(self) noexcept nogil
    cdef void order(self) noexcept nogil
