"""Cache policies written down plainly, and accesses to hold the fast ones against them."""
from collections import OrderedDict, deque

import numpy as np

from gnncy.storage.policies import LRU, S3FIFO, Clock, Sieve


class PlainLRU:
    def __init__(self, capacity):
        self.capacity, self.ids = capacity, OrderedDict()

    def access(self, node):
        """Whether it was a hit; None or the id that was evicted."""
        if node in self.ids:
            self.ids.move_to_end(node)
            return True, None
        gone = self.ids.popitem(last=False)[0] if len(self.ids) == self.capacity else None
        self.ids[node] = True
        return False, gone


class PlainClock:
    """A ring of slots and a hand, as in the textbooks."""

    def __init__(self, capacity):
        self.capacity, self.ids, self.bits, self.hand = capacity, [], [], 0

    def access(self, node):
        if node in self.ids:
            self.bits[self.ids.index(node)] = True
            return True, None
        if len(self.ids) < self.capacity:
            self.ids.append(node)
            self.bits.append(False)
            return False, None
        while self.bits[self.hand]:
            self.bits[self.hand] = False
            self.hand = (self.hand + 1) % self.capacity
        gone, self.ids[self.hand] = self.ids[self.hand], node
        self.hand = (self.hand + 1) % self.capacity
        return False, gone


class PlainSieve:
    """A list, new ids at its front, as in figure 1 of the paper."""

    def __init__(self, capacity):
        self.capacity, self.ids, self.visited, self.hand = capacity, [], set(), None

    def access(self, node):
        if node in self.ids:
            self.visited.add(node)
            return True, None
        gone = None
        if len(self.ids) == self.capacity:
            i = len(self.ids) - 1 if self.hand is None else self.ids.index(self.hand)
            while self.ids[i] in self.visited:
                self.visited.remove(self.ids[i])
                i = i - 1 if i > 0 else len(self.ids) - 1
            gone = self.ids[i]
            self.hand = self.ids[i - 1] if i > 0 else None
            del self.ids[i]
        self.ids.insert(0, node)
        return False, gone


class PlainS3FIFO:
    """Three queues, as in algorithm 1 of the paper; bits are cleared on the way to the main queue (its section 4)."""

    def __init__(self, capacity):
        self.capacity, self.small_size = capacity, max(capacity // 10, 1)
        self.small, self.main, self.ghosts, self.freq = deque(), deque(), deque(), {}

    def access(self, node):
        if node in self.freq:
            self.freq[node] = min(self.freq[node] + 1, 3)
            return True, None
        gone = None
        while gone is None and len(self.freq) == self.capacity:
            gone = self.evict_small() if self.small and len(self.small) >= self.small_size else self.evict_main()
        if node in self.ghosts:
            self.ghosts.remove(node)
            self.main.append(node)
        else:
            self.small.append(node)
        self.freq[node] = 0
        return False, gone

    def evict_small(self):
        node = self.small.popleft()
        if self.freq[node] > 1:
            self.freq[node] = 0
            self.main.append(node)
            return None
        self.ghosts.append(node)
        if len(self.ghosts) > self.capacity - self.small_size:
            self.ghosts.popleft()
        del self.freq[node]
        return node

    def evict_main(self):
        node = self.main.popleft()
        if self.freq[node] > 0:
            self.freq[node] -= 1
            self.main.append(node)
            return None
        del self.freq[node]
        return node


class PlainFrequency:
    """Counts in arrays by id, least ones found by argmin, which takes the lowest id of equals."""

    def __init__(self, capacity, ghosts=None, n=20_000):
        self.room = (capacity, max(capacity, 1024) if ghosts is None else ghosts)
        self.rows, self.ghosts = np.full((2, n), np.inf)
        self.size = [0, 0]

    def haunt(self, node, count):
        if self.room[1]:
            if self.size[1] == self.room[1]:
                self.ghosts[self.ghosts.argmin()] = np.inf
            else:
                self.size[1] += 1
            self.ghosts[node] = count

    def access(self, node):
        if self.rows[node] < np.inf:
            self.rows[node] += 1
            return True, None
        if self.ghosts[node] < np.inf:
            self.ghosts[node] += 1
        else:
            self.haunt(node, 1.0)
        count = self.ghosts[node] if self.room[1] else 0.0
        gone = None
        if self.size[0] == self.room[0]:
            least = int(self.rows.argmin())
            if (count, node) < (self.rows[least], least):
                return False, None
            gone, evicted = least, self.rows[least]
            self.rows[least] = np.inf
        else:
            self.size[0] += 1
        if self.ghosts[node] < np.inf:
            self.ghosts[node] = np.inf
            self.size[1] -= 1
        if gone is not None:
            self.haunt(gone, evicted)
        self.rows[node] = count
        return False, gone

    def decay(self, factor):
        self.rows *= factor
        self.ghosts *= factor


class PlainBelady:
    """Looks through the future at every decision."""

    def __init__(self, capacity):
        self.capacity, self.future, self.ids = capacity, [], []

    def next(self, node):
        return self.future.index(node) if node in self.future else None

    def access(self, node):
        self.future.remove(node)  # the first
        if node in self.ids:
            self.ids.remove(node)
            self.ids.append(node)
            return True, None
        if len(self.ids) == self.capacity:
            unknown = [i for i in self.ids if self.next(i) is None]
            if unknown:
                gone = unknown[0]
            else:
                gone = max(self.ids, key=self.next)
                if self.next(node) is None or self.next(node) > self.next(gone):
                    return False, None
            self.ids.remove(gone)
        else:
            gone = None
        self.ids.append(node)
        return False, gone


PLAIN = {LRU: PlainLRU, Clock: PlainClock, Sieve: PlainSieve, S3FIFO: PlainS3FIFO}


def draw(rng, n, size):
    """Skewed accesses with bursts, over ids of several sizes."""
    ids = np.where(rng.random(size) < 0.7, rng.zipf(1.2, size) % n, rng.integers(0, n, size))
    ids[size // 2:size // 2 + n // 4] = np.arange(n // 4)[:max(size - size // 2, 0)]
    return ids
