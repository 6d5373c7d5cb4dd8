"""Sources of frames, post-processing, metrics: everything around the network."""
