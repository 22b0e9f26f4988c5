"""The backend in plain PyTorch: a few tiles in memory, hand-written gradients, any device."""
