"""Positional block I/O: many small extents of one file in few, ascending system calls.

An entry is ``length[k]`` bytes at ``start[k]`` of the file, ``start`` ascending; two entries are
the same or do not overlap. Neighbours are joined into runs; a run is one read or write.

Several threads may work through the runs of one request: each takes the next ones from ``ticket[0]``
until none are left. A thread that fails takes all that remain, so that the others stop.
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uintptr_t
from libc.string cimport memcpy


cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void* buffer, size_t n, int64_t offset)
    ssize_t pwrite(int fd, const void* buffer, size_t n, int64_t offset)

cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/uio.h>
    #include <time.h>

    static inline int64_t next_ticket(int64_t* ticket, int64_t n) {
        return __atomic_fetch_add(ticket, n, __ATOMIC_RELAXED);
    }

    static inline void end_tickets(int64_t* ticket) {
        __atomic_store_n(ticket, INT64_MAX / 2, __ATOMIC_RELAXED);
    }

    static inline double monotonic(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }

    /* Whether the byte lies in memory already: 1, 0, or -1 where the system does not tell. */
    static inline int cached_byte(int fd, int64_t offset) {
    #ifdef RWF_NOWAIT
        char byte;
        struct iovec piece = {&byte, 1};
        ssize_t got = preadv2(fd, &piece, 1, offset, RWF_NOWAIT);
        return got > 0 ? 1 : got < 0 && errno == EAGAIN ? 0 : -1;
    #else
        return -1;
    #endif
    }
    """
    int64_t next_ticket(int64_t* ticket, int64_t n) nogil
    void end_tickets(int64_t* ticket) nogil
    double monotonic() nogil
    int cached_byte(int fd, int64_t offset) nogil


cdef enum:
    PAGE = 4096


def plan(const int64_t[::1] start, const int64_t[:] length, int unit, int64_t max_gap, int64_t max_run,
         int64_t free_run, double amplification, int64_t[::1] first):
    """Join entries into runs; returns their number. Run r holds the entries ``first[r] .. first[r + 1] - 1``.

    Everything is counted in whole units of ``2 ** unit`` bytes: pages (12) where the disk is read by pages. An entry
    joins the run before it if the gap is at most ``max_gap`` bytes, the run stays within ``max_run``, and it either
    stays within ``free_run`` or reads at most ``amplification`` times what is needed.
    """
    cdef Py_ssize_t k, n = start.shape[0], runs = 0
    cdef int64_t low, high, run_low = 0, run_high = 0, needed = 0, span, more
    with nogil:
        for k in range(n):
            low = start[k] >> unit
            high = ((start[k] + length[k] - 1) >> unit) + 1
            more = high - max(low, run_high)
            span = (high - run_low) << unit
            if (k > 0 and (low - run_high) << unit <= max_gap and span <= max_run
                    and (span <= free_run or span <= amplification * <double>((needed + more) << unit))):
                needed += more
                run_high = high
            else:
                first[runs] = k
                runs += 1
                run_low = low
                run_high = high
                needed = high - low
        first[runs] = n
    return runs


def cached(int fd, const int64_t[::1] start, Py_ssize_t samples):
    """How many of ``samples`` entries, spread evenly, begin in the page cache; -1 where the system does not tell."""
    cdef Py_ssize_t k, found = 0, n = start.shape[0]
    cdef int answer
    with nogil:
        for k in range(samples):
            answer = cached_byte(fd, start[k * n // samples])
            if answer < 0:
                found = -1
                break
            found += answer
    return found


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


cdef int fill_pages(int fd, uint8_t* p, int64_t n, int64_t offset, int64_t most, int64_t* report) noexcept nogil:
    """As ``fill`` for a descriptor that wants whole pages: reads those that ``n`` bytes at a page's start lie on."""
    cdef ssize_t got
    cdef int64_t done = 0, size = (n + PAGE - 1) // PAGE * PAGE
    most = max(most // PAGE * PAGE, PAGE)
    while done < n:
        got = pread(fd, p + done, <size_t>min(size - done, most), offset + done)
        if got < 0 and errno == EINTR:
            continue
        if got > 0:
            report[0] += got
            report[1] += 1
            if done + got >= n:
                break
            got = got // PAGE * PAGE  # a page of which a part came is read again
        if got <= 0:
            report[2] = offset + done
            return errno if got < 0 else -1
        done += got
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


cdef int fill_through(int fd, uint8_t* p, int64_t n, int64_t offset, int64_t most, uint8_t[::1] bounce,
                      int64_t* report) noexcept nogil:
    """Read ``n`` bytes at any ``offset`` to any address by whole pages, straight where both lie on page bounds."""
    cdef int64_t skip, piece
    cdef int status
    if (offset | <int64_t><uintptr_t>p) % PAGE == 0 and n >= PAGE:
        piece = n // PAGE * PAGE
        status = fill_pages(fd, p, piece, offset, most, report)
        if status:
            return status
        p += piece
        n -= piece
        offset += piece
    while n > 0:
        skip = offset % PAGE
        piece = min(n, bounce.shape[0] - skip)
        status = fill_pages(fd, &bounce[0], skip + piece, offset - skip, most, report)
        if status:
            return status
        memcpy(p, &bounce[skip], <size_t>piece)
        p += piece
        n -= piece
        offset += piece
    return 0


def read_runs(int fd, bint pages, const int64_t[::1] start, const int64_t[:] length, const int64_t[::1] place,
              const int64_t[::1] first, Py_ssize_t runs, int64_t[::1] ticket, Py_ssize_t grain, int64_t most,
              uint8_t[::1] bounce, uint8_t[::1] out, int64_t[::1] report):
    """Read runs and write entry k to ``out[place[k]:]``, ``grain`` runs a ticket.

    With ``pages`` the descriptor wants whole pages at page bounds (``O_DIRECT``), ``bounce`` too.
    Returns 0, the errno of a failed call, or -1 where the file ends early. ``report`` accumulates bytes and
    operations and receives the offset of a failure. ``bounce`` holds the longest run of more than one entry.
    """
    cdef Py_ssize_t r, k, low, high, taken
    cdef int64_t base, size, skip
    cdef int status = 0
    with nogil:
        while status == 0:
            taken = next_ticket(&ticket[0], grain)
            if taken >= runs:
                break
            for r in range(taken, min(taken + grain, runs)):
                low = first[r]
                high = first[r + 1]
                base = start[low]
                size = start[high - 1] + length[high - 1] - base
                if contiguous(&start[0], length, &place[0], low, high):
                    if pages:
                        status = fill_through(fd, &out[place[low]], size, base, most, bounce, &report[0])
                    else:
                        status = fill(fd, &out[place[low]], size, base, most, &report[0])
                    if status:
                        break
                    continue
                if pages:
                    skip = base % PAGE
                    base -= skip
                    status = fill_pages(fd, &bounce[0], size + skip, base, most, &report[0])
                else:
                    status = fill(fd, &bounce[0], size, base, most, &report[0])
                if status:
                    break
                for k in range(low, high):
                    memcpy(&out[place[k]], &bounce[start[k] - base], <size_t>length[k])
        if status:
            end_tickets(&ticket[0])
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


def burst(int fd, const int64_t[::1] offset, int64_t size, bint writes, double seconds, int64_t[::1] ticket,
          uint8_t[::1] buffer):
    """Read or write ``size`` bytes at one offset after the other, from ``ticket[0]`` on, for some seconds.

    Returns the number of operations, or minus the errno of one that failed.
    """
    cdef Py_ssize_t taken, done = 0
    cdef ssize_t got = size
    cdef double until
    with nogil:
        until = monotonic() + seconds
        while monotonic() < until:
            taken = next_ticket(&ticket[0], 1)
            if taken >= offset.shape[0]:
                break
            if writes:
                got = pwrite(fd, &buffer[0], <size_t>size, offset[taken])
            else:
                got = pread(fd, &buffer[0], <size_t>size, offset[taken])
            if got < 0 and errno != EINTR:
                done = -errno
                break
            done += got == size
    return done
