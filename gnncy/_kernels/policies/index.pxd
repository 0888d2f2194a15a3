from libc.stdint cimport int32_t, uint32_t, uint64_t

from gnncy._kernels._hash cimport mix64

cdef enum:
    FREE = 0xFFFFFFFF  # stands for an id where an entry has none


cdef struct Entry:
    uint32_t id
    int32_t slot


cdef class Index:
    cdef Entry[::1] entries

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

    cdef void forget(self, uint32_t id) noexcept nogil
