"""Scan and repack: rows of a file in ascending order, each appended to every stream that needs it, and read back.

A stream's rows are listed as gaps between ascending rows, seven bits a byte, low bits first, the eighth set where more
follow. Its bytes go through an extent of memory at a time; a full one waits to be written.
"""
import numpy as np

from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from gnncy._kernels._rowset cimport rank_of


cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void* buffer, size_t n, int64_t offset)
    ssize_t pwrite(int fd, const void* buffer, size_t n, int64_t offset)


cdef enum:
    PAGE = 4096


def distinct(const int64_t[::1] rows, const uint64_t[:, ::1] hot, int64_t[::1] out):
    """Of ascending rows those that are not in ``hot``, each once; returns how many there are."""
    cdef Py_ssize_t k, n = 0
    with nogil:
        for k in range(rows.shape[0]):
            if (k == 0 or rows[k] != rows[k - 1]) and rank_of(hot, rows[k]) < 0:
                out[n] = rows[k]
                n += 1
    return n


def encode(const int64_t[::1] rows, uint8_t[::1] out):
    """Write the list of ascending distinct rows to ``out``, of ten bytes a row; returns how many bytes it took."""
    cdef Py_ssize_t k, at = 0
    cdef int64_t before = -1, gap
    with nogil:
        for k in range(rows.shape[0]):
            gap = rows[k] - before - 1
            before = rows[k]
            while gap > 127:
                out[at] = <uint8_t>(gap & 127 | 128)
                gap >>= 7
                at += 1
            out[at] = <uint8_t>gap
            at += 1
    return at


cdef inline int64_t decode(const uint8_t* lists, int64_t* at) noexcept nogil:
    cdef int64_t gap = 0
    cdef int shift = 0
    while lists[at[0]] & 128:
        gap |= <int64_t>(lists[at[0]] & 127) << shift
        shift += 7
        at[0] += 1
    gap |= <int64_t>lists[at[0]] << shift
    at[0] += 1
    return gap


def touch(const int64_t[::1] rows, int64_t row_bytes, int64_t offset, uint8_t[::1] pages):
    """Mark the pages of a file that rows lie on; row 0 begins at byte ``offset``."""
    cdef Py_ssize_t k, page, last
    with nogil:
        for k in range(rows.shape[0]):
            last = (offset + (rows[k] + 1) * row_bytes - 1) // PAGE
            for page in range((offset + rows[k] * row_bytes) // PAGE, last + 1):
                pages[page] = 1


def runs(const uint8_t[::1] pages, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t gap, int64_t[::1] first,
         int64_t[::1] last):
    """Marked pages of a range as runs of bytes ``first .. last - 1``, over gaps of at most ``gap`` pages; their number."""
    cdef Py_ssize_t page, n = 0
    with nogil:
        for page in range(start, stop):
            if pages[page]:
                if n == 0 or page * PAGE - last[n - 1] > gap * PAGE:
                    first[n] = page * PAGE
                    n += 1
                last[n - 1] = (page + 1) * PAGE
    return n


def read(int fd, const int64_t[::1] first, const int64_t[::1] last, int64_t base, int64_t end, uint8_t[::1] buffer,
         int64_t[::1] report):
    """Read bytes ``first[k] .. last[k] - 1`` of a file that needs no more than ``end`` to ``buffer[first[k] - base:]``.

    Returns 0, the errno of a failed call, or -1 where the file ends early. ``report`` accumulates bytes and
    operations and receives the offset of a failure.
    """
    cdef Py_ssize_t k
    cdef int64_t at
    cdef ssize_t got
    cdef int status = 0
    with nogil:
        for k in range(first.shape[0]):
            at = first[k]
            while status == 0 and at < min(last[k], end):
                got = pread(fd, &buffer[at - base], <size_t>(last[k] - at), at)
                if got > 0:
                    report[0] += got
                    report[1] += 1
                    at += got
                elif got == 0 or errno != EINTR:
                    status = errno if got < 0 else -1
                    report[2] = at
            if status:
                break
    return status


def write(int fd, const uint8_t[:, ::1] extents, const int64_t[:, ::1] full, int64_t[::1] report):
    """Write the first bytes of extents, each (extent, offset, size): 0, an errno, or -1 where nothing is taken."""
    cdef Py_ssize_t k
    cdef int64_t done
    cdef ssize_t got
    cdef int status = 0
    with nogil:
        for k in range(full.shape[0]):
            done = 0
            while status == 0 and done < full[k, 2]:
                got = pwrite(fd, &extents[full[k, 0], done], <size_t>(full[k, 2] - done), full[k, 1] + done)
                if got > 0:
                    report[0] += got
                    report[1] += 1
                    done += got
                elif got == 0 or errno != EINTR:
                    status = errno if got < 0 else -1
                    report[2] = full[k, 1] + done
            if status:
                break
    return status


cdef class Streams:
    """Streams of rows on their way from a scan to a file.

    ``lists[bounds[k]:bounds[k + 1]]`` lists the rows of stream k, which goes to byte ``offsets[k]`` of the file.
    There are more ``extents`` than streams. The first flush of every stream comes at another time than that of the
    others, so that writing goes on evenly.
    """
    cdef const uint8_t[::1] lists
    cdef uint8_t[:, ::1] extents
    cdef int64_t[::1] at, row, offset, used, room
    cdef const int64_t[::1] end
    cdef int32_t[::1] own, free
    cdef int64_t[:, ::1] full
    cdef int64_t row_bytes, done
    cdef Py_ssize_t stream, n_free
    cdef readonly Py_ssize_t waiting

    def __init__(self, const uint8_t[::1] lists, const int64_t[::1] bounds, const int64_t[::1] offsets,
                 int64_t row_bytes, uint8_t[:, ::1] extents):
        cdef Py_ssize_t k, n = offsets.shape[0]
        self.lists = lists
        self.extents = extents
        self.row_bytes = row_bytes
        self.at, self.row, self.offset = np.array(bounds[:n]), np.full(n, -1), np.array(offsets)
        self.used = np.zeros(n, np.int64)
        self.room = (1 + np.arange(n) * (extents.shape[1] // PAGE) // max(n, 1)) * PAGE
        self.end = bounds[1:]
        self.own = np.full(n, -1, np.int32)
        self.free = np.arange(extents.shape[0] - 1, -1, -1, dtype=np.int32)
        self.full = np.empty((extents.shape[0], 3), np.int64)
        self.n_free = extents.shape[0]
        self.waiting = self.stream = self.done = 0
        for k in range(n):
            self.following(k)

    cdef inline void following(self, Py_ssize_t k) noexcept nogil:
        """Go to the next row of a stream; past every row after the last one."""
        if self.at[k] < self.end[k]:
            self.row[k] += 1 + decode(&self.lists[0], &self.at[k])
        else:
            self.row[k] = INT64_MAX

    cdef inline void hand_over(self, Py_ssize_t k, int64_t size) noexcept nogil:
        self.full[self.waiting, 0] = self.own[k]
        self.full[self.waiting, 1] = self.offset[k]
        self.full[self.waiting, 2] = size
        self.waiting += 1
        self.offset[k] += size
        self.own[k] = -1
        self.used[k] = 0
        self.room[k] = self.extents.shape[1]

    def append(self, const uint8_t[::1] chunk, int64_t base, int64_t stop):
        """Append the rows before ``stop`` from a chunk that begins at byte ``base`` of the rows.

        Returns False where there is no free extent; call again with the same chunk when there is one.
        """
        cdef int64_t part
        cdef Py_ssize_t k
        with nogil:
            while self.stream < self.own.shape[0]:
                k = self.stream
                while self.row[k] < stop:
                    while self.done < self.row_bytes:
                        if self.own[k] < 0:
                            if self.n_free == 0:
                                with gil:
                                    return False
                            self.n_free -= 1
                            self.own[k] = self.free[self.n_free]
                        part = min(self.row_bytes - self.done, self.room[k] - self.used[k])
                        memcpy(&self.extents[self.own[k], self.used[k]],
                               &chunk[self.row[k] * self.row_bytes - base + self.done], <size_t>part)
                        self.done += part
                        self.used[k] += part
                        if self.used[k] == self.room[k]:
                            self.hand_over(k, self.room[k])
                    self.done = 0
                    self.following(k)
                self.stream += 1
            self.stream = 0
        return True

    def finish(self):
        """Hand over what is left in the extents, as whole pages."""
        cdef Py_ssize_t k
        with nogil:
            for k in range(self.own.shape[0]):
                if self.used[k] > 0:
                    self.hand_over(k, (self.used[k] + PAGE - 1) // PAGE * PAGE)

    def take(self, Py_ssize_t most):
        """Up to ``most`` extents that are to be written, as rows of (extent, offset, size)."""
        cdef Py_ssize_t count = min(most, self.waiting)
        self.waiting -= count
        return np.array(self.full[self.waiting:self.waiting + count])

    def release(self, const int64_t[:, ::1] full):
        """Extents that were written are free again."""
        cdef Py_ssize_t k
        with nogil:
            for k in range(full.shape[0]):
                self.free[self.n_free] = <int32_t>full[k, 0]
                self.n_free += 1


def divide(const int64_t[::1] rows, const int64_t[::1] position, const uint64_t[:, ::1] hot,
           const uint8_t[:, ::1] hot_rows, uint8_t[:, ::1] out, int64_t[::1] cold, int64_t[::1] rank):
    """Copy the hot ones of ascending rows to ``out[position[k]]``; list the position of the others, and their rank.

    Ranks number distinct cold rows, as they lie in a stream. Returns how many accesses are cold.
    """
    cdef Py_ssize_t k, n = 0
    cdef int64_t place, last = -1
    with nogil:
        for k in range(rows.shape[0]):
            place = rank_of(hot, rows[k])
            if place >= 0:
                memcpy(&out[position[k], 0], &hot_rows[place, 0], <size_t>out.shape[1])
                continue
            if n == 0 or rows[k] != last:
                rank[n] = rank[n - 1] + 1 if n else 0
            else:
                rank[n] = rank[n - 1]
            last = rows[k]
            cold[n] = position[k]
            n += 1
    return n


def put(const uint8_t[::1] piece, int64_t start, int64_t stop, const int64_t[::1] cold, const int64_t[::1] rank,
        Py_ssize_t k, uint8_t[:, ::1] out):
    """Copy bytes ``start .. stop - 1`` of a stream, which ``piece`` begins with, to their rows of ``out``.

    ``k`` is the first access whose row is not complete; returns the next such.
    """
    cdef int64_t size = out.shape[1], first, low, high
    cdef Py_ssize_t j
    with nogil:
        for j in range(k, cold.shape[0]):
            first = rank[j] * size
            if first >= stop:
                break
            low = max(first, start)
            high = min(first + size, stop)
            memcpy(&out[cold[j], low - first], &piece[low - start], <size_t>(high - low))
            if first + size <= stop:
                k = j + 1
    return k
