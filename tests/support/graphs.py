"""What MLX would compute for arrays that it has not computed yet."""

import io
import re

import mlx.core as mx


def operations(*arrays):
    """The names of their graph's operations, views among them."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    return re.findall(r'label ?= ?"([^"]+)", shape ?= ?rectangle', graph.getvalue())
