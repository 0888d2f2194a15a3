"""Neighbour sampling, one hop of many nodes. A draw depends on the hop's key and the node alone."""
from libc.stdint cimport int64_t, uint64_t

from gnncy._kernels._floyd cimport choose_some, index
from gnncy._kernels._hash cimport mix64
from gnncy._kernels._prefetch cimport prefetch


def enter(const int64_t[::1] nodes, index[::1] place):
    """Write each node's position; place is -1 elsewhere. Returns the first repeated node's position, or -1."""
    cdef Py_ssize_t i, repeated = -1
    with nogil:
        for i in range(nodes.shape[0]):
            if place[nodes[i]] >= 0:
                repeated = i
                break
            place[nodes[i]] = i
    return repeated


def leave(const int64_t[::1] nodes, index[::1] place):
    """Take the nodes' positions back."""
    cdef Py_ssize_t i
    with nogil:
        for i in range(nodes.shape[0]):
            place[nodes[i]] = -1


def spans(const index[::1] indptr, const int64_t[::1] nodes, Py_ssize_t fanout, index[::1] out_indptr):
    """Write the block's row starts: of each node at most fanout neighbours, all if fanout is negative."""
    cdef Py_ssize_t i, n = nodes.shape[0]
    cdef index k
    with nogil:
        out_indptr[0] = 0
        for i in range(n):
            if i + 16 < n:
                prefetch(&indptr[nodes[i + 16]])
            k = indptr[nodes[i] + 1] - indptr[nodes[i]]
            if fanout >= 0 and k > fanout:
                k = fanout
            out_indptr[i + 1] = out_indptr[i] + k


def choose(const index[::1] indptr, const int64_t[::1] nodes, const index[::1] out_indptr, uint64_t key,
           uint64_t[::1] taken, index[::1] out_edges):
    """Write the chosen places in indices: all in order, or a uniform subset (Floyd). taken has a zero bit per neighbour."""
    cdef Py_ssize_t i, t, begin, k, n = nodes.shape[0]
    cdef int64_t first, degree
    with nogil:
        for i in range(n):
            if i + 16 < n:
                prefetch(&indptr[nodes[i + 16]])
            first = indptr[nodes[i]]
            degree = indptr[nodes[i] + 1] - first
            begin = out_indptr[i]
            k = out_indptr[i + 1] - begin
            if k == degree:
                for t in range(k):
                    out_edges[begin + t] = first + t
                continue
            choose_some(first, degree, k, mix64(key ^ mix64(nodes[i])), &taken[0], &out_edges[begin])


def relabel(const index[::1] indices, const index[::1] edges, Py_ssize_t known, index[::1] place, int64_t[::1] nodes,
            index[::1] out):
    """Write the position among nodes of each edge's end, appending new nodes; returns how many there are then.

    nodes has one place to spare.
    """
    cdef Py_ssize_t p, m = edges.shape[0]
    cdef index v, k
    cdef bint new
    with nogil:
        for p in range(m):
            if p + 32 < m:
                prefetch(&indices[edges[p + 32]])
            out[p] = indices[edges[p]]
        for p in range(m):
            if p + 32 < m:
                prefetch(&place[out[p + 32]])
            # Written always, kept if new: no branch to guess wrong.
            v = out[p]
            k = place[v]
            new = k < 0
            k = <index>known if new else k
            place[v] = k
            out[p] = k
            nodes[known] = v
            known += new
    return known
