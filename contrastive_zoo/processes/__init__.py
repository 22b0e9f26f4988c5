"""Multi-process batches: gathering features, and sharing the pairwise work among processes."""
