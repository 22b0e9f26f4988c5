"""Adapters for other packages, one module per package; each module needs that package, and `contrastive_zoo` imports none of them.

`lightning` and `huggingface` have callbacks that save and restore what a trainer forgets. `sentence_transformers`, `open_clip` and
`pytorch_metric_learning` have losses with the call signature of these packages. ``pip install 'contrastive-zoo[integrations]'``
installs all packages, and ``contrastive-zoo[lightning]`` one.
"""
