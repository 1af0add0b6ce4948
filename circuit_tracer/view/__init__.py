"""What one looks at: a drawing, its layout, a plotly figure, and one self-contained HTML page.

Pure presentation. A `Drawing` is plain data that any caller can fill; nothing here knows of
models, tensors or graphs. plotly is imported when something is drawn, never before.
"""

from circuit_tracer.view.drawing import Drawing, DrawnNode
from circuit_tracer.view.figure import figure
from circuit_tracer.view.page import render

__all__ = ["Drawing", "DrawnNode", "figure", "render"]
