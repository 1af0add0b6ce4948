"""File formats of transcoders, one module a format; no maths here. `opening` tells them apart."""
