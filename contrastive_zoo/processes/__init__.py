"""Batches that several processes hold together: gathering them, and sharing the work on them."""
