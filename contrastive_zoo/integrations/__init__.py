"""Adapters for other packages: one module per package, imported by nothing but your own import statement.

`lightning` and `huggingface` have callbacks that save and restore what a trainer does not. `sentence_transformers`,
`open_clip` and `pytorch_metric_learning` have losses with the call signatures of these packages.
``pip install 'contrastive-zoo[integrations]'`` installs all packages, ``'contrastive-zoo[lightning]'`` one of them.
"""
