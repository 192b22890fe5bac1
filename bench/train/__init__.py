"""``collcomp bench train``: models trained by data-parallel ranks that compress their gradients.

``--model digits`` is a classifier in NumPy over MPI, ``--model gpt`` a transformer in PyTorch over DDP's hooks.
"""
