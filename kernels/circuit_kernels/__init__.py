"""Kernels of circuit tracing: tensors in, tensors out, nothing known of models or graphs.

Each kernel has a torch reference in the file that bears its name, and may have a Triton form in
`<name>_triton.py`; `choice` decides which one runs, once, by name, and never falls back silently.
"""
