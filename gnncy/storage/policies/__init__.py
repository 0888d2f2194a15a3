"""Which rows a cache keeps: policies over integer ids, and a simulator that compares them on a trace of accesses."""
from gnncy.storage.policies.policy import LRU, S3FIFO, Belady, Clock, Frequency, Policy, Sieve, Static, make_policy
from gnncy.storage.policies.simulate import simulate
from gnncy.storage.policies.trace import Trace, hottest

__all__ = ["LRU", "S3FIFO", "Belady", "Clock", "Frequency", "Policy", "Sieve", "Static", "Trace", "hottest",
           "make_policy", "simulate"]
