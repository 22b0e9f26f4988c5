"""The backend of Triton kernels, for log-sum-exps on NVIDIA GPUs. Triton is imported when the first kernel is launched."""

# Logits that range over less are bounded: exponentials relative to the bound are normal numbers, at least 1e-30.
BOUNDED_RANGE = 69.0
