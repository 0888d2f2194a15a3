"""A training that ends in its midst, as if it were killed."""


class Stop(Exception):
    pass


class StopAfter:
    def __init__(self, steps):
        self.left = steps

    def on_batch_end(self, trainer, info):
        self.left -= 1
        if self.left == 0:
            raise Stop
