"""The backend of Triton kernels, for NVIDIA GPUs. Triton is imported when the first kernel is launched."""

# Logits that range over less are bounded: exponentials relative to the bound are normal numbers, at least 1e-30.
BOUNDED_RANGE = 69.0
# Flag TERM of the kernels. From SQUARES on, one function of a pair serves both of its rows.
LOGSUMEXP, SOFTPLUS, SQUARES, GAUSSIAN, LOG, IMQ, RIESZ = range(7)
