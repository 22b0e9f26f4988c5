"""The backend of Triton kernels, for log-sum-exps on NVIDIA GPUs. Triton is imported when the first kernel is launched."""

# Logits are bounded if they range over less than this: then exponentials relative to the bound are normal numbers, at least 1e-30.
BOUNDED_RANGE = 69.0
