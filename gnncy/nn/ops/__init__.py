"""The operations of the tape, by kind; in each file forward and backward stand side by side.

============== ======================================================================================================
arithmetic     add, subtract, multiply, divide, negative, exp, log, where, matmul, affine
shape          transpose, reshape, take, concatenate
reductions     sum, mean, max, softmax, log_softmax, logsumexp
activations    relu, leaky_relu, elu, gelu, prelu, tanh, sigmoid, dropout
rows           l2_normalise, layer_norm, batch_norm
graphs         aggregate, spmm, graph_linear, propagate, arc_add, arc_dot, arc_scores, arc_combine, segment_softmax
============== ======================================================================================================
"""
from gnncy.nn.ops.activations import dropout, elu, gelu, leaky_relu, prelu, relu, sigmoid, tanh
from gnncy.nn.ops.arithmetic import add, affine, divide, exp, log, matmul, multiply, negative, subtract, where
from gnncy.nn.ops.graphs import (
    aggregate,
    arc_add,
    arc_combine,
    arc_dot,
    arc_scores,
    graph_linear,
    propagate,
    segment_softmax,
    spmm,
)
from gnncy.nn.ops.reductions import log_softmax, logsumexp, max, mean, softmax, sum
from gnncy.nn.ops.rows import batch_norm, l2_normalise, layer_norm
from gnncy.nn.ops.shape import concatenate, reshape, take, transpose

__all__ = ["add", "affine", "aggregate", "arc_add", "arc_combine", "arc_dot", "arc_scores", "batch_norm",
           "concatenate", "divide", "dropout", "elu", "exp", "gelu", "graph_linear", "l2_normalise", "layer_norm",
           "leaky_relu", "log", "log_softmax", "logsumexp", "matmul", "max", "mean", "multiply", "negative", "prelu",
           "propagate", "relu", "reshape", "segment_softmax", "sigmoid", "softmax", "spmm", "subtract", "sum", "take",
           "tanh", "transpose", "where"]
