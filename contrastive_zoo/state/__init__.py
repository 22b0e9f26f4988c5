"""What a loss remembers between steps: buffers in full precision, tables per sample, counters, seeds and temperatures."""
