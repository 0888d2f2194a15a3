"""Cache policies: which id holds which of a bounded number of slots, decided access by access.

A policy is told of accesses (``touch``) and of rows on offer (``admit``). Slots 0 .. capacity-1 are for rows; those
above are ghosts, ids that a policy remembers without a row. Ids lie below 2**32 - 1. Every decision is a function of
the calls before it alone. The caller checks arguments and holds a lock: nothing here is safe against a second thread.
"""
