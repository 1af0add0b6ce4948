"""Triton kernels run in Triton's interpreter where there is no GPU.

The switch has to be set before a module with a kernel is imported, hence here.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
