"""The backend in plain PyTorch: a few tiles in memory, gradients by hand, on any device."""
