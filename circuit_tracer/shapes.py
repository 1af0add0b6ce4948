"""The glossary of axis names used in jaxtyping annotations.

    position   tokens of the prompt, 0 first                      P
    layer      transformer blocks, 0 first                        L
    d_model    width of the residual stream                       D
    feature    features of one transcoder layer                   F
    active     features of a prompt that fired, in node order     n_features
    target     rows of the graph being attributed                 T
    source     columns of the graph                               n_sources
    node       all nodes of a graph                               n_nodes
    head       query heads        kv_head   key/value heads       head_dim   width of one head
    vocabulary tokens of the vocabulary                           V

A tensor that crosses a function boundary carries these in its annotation, e.g.
`Float[Tensor, "target position d_model"]`.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Tensor"]
