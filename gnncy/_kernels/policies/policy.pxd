from libc.stdint cimport int32_t, int64_t, uint32_t

from gnncy._kernels.policies.index cimport Index


cdef class Policy:
    cdef Index index
    cdef readonly Py_ssize_t capacity, evictions

    cdef int32_t touch(self, uint32_t id) noexcept nogil
    cdef int32_t admit(self, uint32_t id) noexcept nogil
    cdef int64_t drop(self) noexcept nogil
    cdef int32_t where(self, uint32_t id) noexcept nogil
    cdef void warm(self, int32_t slot) noexcept nogil
