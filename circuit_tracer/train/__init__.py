"""Training transcoders for a model: from texts to a folder that can be traced with.

`settings` says how, `corpus` and `blocks` turn texts into what the MLPs read and wrote, `network`
is the set in training, `loop` trains it, `folding` turns it into the model's own units, and
`making` does all of it in order.
"""
