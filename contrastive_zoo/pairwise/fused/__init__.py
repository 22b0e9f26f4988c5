"""The backend of Triton kernels, for log-sum-exps on NVIDIA GPUs. Triton is imported when the first kernel is launched."""
