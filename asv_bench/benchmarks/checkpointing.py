"""Gradient checkpointing: a step under each policy, planning a schedule, activations to disk and back."""
import numpy as np

from gnncy import nn
from gnncy.nn import RecomputationPolicy as Policy
from gnncy.nn.checkpointing import ActivationMeter, Chain, SpillFile, estimate, measure_chain, optimal, simulate

from . import sized

POLICIES = {"off": Policy.off(), "every 4": Policy.every(4), "sqrt": Policy.sqrt(), "revolve 4": Policy.revolve(4)}


class Step:
    params = [[*POLICIES, "budget 1/4", "budget 1/8"]]
    param_names = ["policy"]

    def setup(self, policy):
        n = sized(20_000, 1_000)
        self.x = np.random.default_rng(0).standard_normal((n, 64), np.float32)
        self.model = nn.MLP([64] * 33, "relu", norm=True, rng=0)
        chain = measure_chain(self.model, self.x)
        if policy in POLICIES:
            self.schedule = POLICIES[policy].schedule(chain)
        else:
            part = int(policy[-1])
            self.schedule = Policy.budget(estimate(chain, None).activation_bytes // part).schedule(chain)

    def step(self, policy):
        nn.mean(nn.checkpoint_sequential(self.model, self.x, self.schedule)).backward()

    def time_step(self, policy):
        self.step(policy)

    def peakmem_step(self, policy):
        self.step(policy)

    def track_activation_bytes(self, policy):
        with ActivationMeter() as meter:
            self.step(policy)
        return meter.peak

    track_activation_bytes.unit = "bytes"


class Plan:
    params = [[16, 64]]
    param_names = ["layers"]

    def setup(self, layers):
        self.chain = Chain.uniform(layers, 60_000_000, 120_000_000)
        self.memory = simulate(self.chain, tuple(range(layers))).peak_bytes // 4

    def time_optimal(self, layers):
        optimal(self.chain, self.memory)


class Spilling:
    def setup(self):
        self.array = np.ones(sized(16_000_000, 1_000_000), np.float32)
        self.file = SpillFile()

    def teardown(self):
        self.file.close()

    def time_write_and_read(self):
        place = self.file.write(self.array)
        self.file.read(place)
        self.file.free(place)
