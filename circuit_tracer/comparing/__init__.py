"""Graphs against graphs: what prompts, languages or checkpoints share and do not.

Texts in different languages have different tokens in different places, so features are matched by
(layer, id), or by what their decoders write, and never by position.
"""
