"""State of a loss between steps: buffers in full precision, tables per sample, counters, seeds and temperatures."""
