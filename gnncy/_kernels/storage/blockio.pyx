"""Positional block I/O: many small extents of one file in few, ascending system calls.

An entry is ``length[k]`` bytes at ``start[k]`` of the file, ``start`` ascending; two entries are
the same or do not overlap. Neighbours are joined into runs; a run is one read or write.
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy


cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void* buffer, size_t n, int64_t offset)
    ssize_t pwrite(int fd, const void* buffer, size_t n, int64_t offset)


cdef enum:
    PAGE = 4096
    OPERATION = 32768  # what one more operation is worth in bytes, when work is divided into groups
    GROUP = 4194304


def plan(const int64_t[::1] start, const int64_t[:] length, int64_t max_gap, int64_t max_run, double amplification,
         int64_t[::1] first, int64_t[::1] group, int64_t[::1] count):
    """Join entries into runs and runs into groups of similar work; ``count`` receives the number of each.

    Run r holds the entries ``first[r] .. first[r + 1] - 1``, group g the runs ``group[g] .. group[g + 1] - 1``.
    An entry joins the run before it if the gap is at most ``max_gap``, the run stays within ``max_run`` bytes, and
    what is read stays within ``amplification`` times what is needed, or the two share a page anyway.
    """
    cdef Py_ssize_t k, n = start.shape[0], runs = 0, groups = 0
    cdef int64_t run_start = 0, run_stop = 0, stop, needed = 0, cost = 0
    cdef bint joins
    with nogil:
        for k in range(n):
            stop = start[k] + length[k]
            joins = (k > 0 and start[k] - run_stop <= max_gap and stop - run_start <= max_run
                     and (stop - run_start <= amplification * (needed + stop - max(start[k], run_stop))
                          or start[k] // PAGE <= (run_stop - 1) // PAGE))
            if joins:
                needed += stop - max(start[k], run_stop)
                cost += stop - run_stop
            else:
                if k == 0 or cost >= GROUP:
                    group[groups] = runs
                    groups += 1
                    cost = 0
                first[runs] = k
                runs += 1
                run_start = start[k]
                needed = length[k]
                cost += OPERATION + needed
            run_stop = stop
        first[runs] = n
        group[groups] = runs
        count[0] = runs
        count[1] = groups


cdef int fill(int fd, uint8_t* p, int64_t n, int64_t offset, int64_t most, int64_t* report) noexcept nogil:
    """Read ``n`` bytes at ``offset``, at most ``most`` a call: 0, an errno, or -1 where the file ends early."""
    cdef ssize_t got
    while n > 0:
        got = pread(fd, p, <size_t>min(n, most), offset)
        if got <= 0:
            if got < 0 and errno == EINTR:
                continue
            report[2] = offset
            return errno if got < 0 else -1
        report[0] += got
        report[1] += 1
        p += got
        n -= got
        offset += got
    return 0


cdef int spill(int fd, const uint8_t* p, int64_t n, int64_t offset, int64_t most, int64_t* report) noexcept nogil:
    """Write ``n`` bytes at ``offset``: 0, an errno, or -1 where nothing more is taken."""
    cdef ssize_t got
    while n > 0:
        got = pwrite(fd, p, <size_t>min(n, most), offset)
        if got <= 0:
            if got < 0 and errno == EINTR:
                continue
            report[2] = offset
            return errno if got < 0 else -1
        report[0] += got
        report[1] += 1
        p += got
        n -= got
        offset += got
    return 0


cdef bint contiguous(const int64_t* start, const int64_t[:] length, const int64_t* place,
                     Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """Whether the entries follow each other without a gap, in the file and in memory."""
    cdef Py_ssize_t k
    for k in range(low, high - 1):
        if start[k + 1] != start[k] + length[k] or place[k + 1] != place[k] + length[k]:
            return False
    return True


def read_runs(int fd, const int64_t[::1] start, const int64_t[:] length, const int64_t[::1] place,
              const int64_t[::1] first, Py_ssize_t begin, Py_ssize_t end, int64_t most,
              uint8_t[::1] bounce, uint8_t[::1] out, int64_t[::1] report):
    """Read runs ``begin .. end - 1`` and write entry k to ``out[place[k]:]``.

    Returns 0, the errno of a failed call, or -1 where the file ends early. ``report`` accumulates bytes and
    operations and receives the offset of a failure. ``bounce`` holds the longest run of more than one entry.
    """
    cdef Py_ssize_t r, k, low, high
    cdef int64_t base
    cdef int status = 0
    with nogil:
        for r in range(begin, end):
            low = first[r]
            high = first[r + 1]
            base = start[low]
            if contiguous(&start[0], length, &place[0], low, high):
                status = fill(fd, &out[place[low]], start[high - 1] + length[high - 1] - base, base, most, &report[0])
                if status:
                    break
                continue
            status = fill(fd, &bounce[0], start[high - 1] + length[high - 1] - base, base, most, &report[0])
            if status:
                break
            for k in range(low, high):
                memcpy(&out[place[k]], &bounce[start[k] - base], <size_t>length[k])
    return status


def write_runs(int fd, const int64_t[::1] start, const int64_t[:] length, const int64_t[::1] place,
               const int64_t[::1] first, Py_ssize_t begin, Py_ssize_t end, int64_t most,
               uint8_t[::1] bounce, const uint8_t[::1] data, int64_t[::1] report):
    """Write ``data[place[k]:]`` to entry k, for runs planned with ``max_gap`` 0; of repeats the last one stays."""
    cdef Py_ssize_t r, k, low, high
    cdef int64_t base
    cdef int status = 0
    with nogil:
        for r in range(begin, end):
            low = first[r]
            high = first[r + 1]
            base = start[low]
            if contiguous(&start[0], length, &place[0], low, high):
                status = spill(fd, &data[place[low]], start[high - 1] + length[high - 1] - base, base, most, &report[0])
            else:
                for k in range(low, high):
                    memcpy(&bounce[start[k] - base], &data[place[k]], <size_t>length[k])
                status = spill(fd, &bounce[0], start[high - 1] + length[high - 1] - base, base, most, &report[0])
            if status:
                break
    return status
