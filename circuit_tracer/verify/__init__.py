"""Is a graph true? Its claims against what the model does when features are taken out of it."""
