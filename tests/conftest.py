"""Puts this folder on the import path, where `helpers` is."""

from hypothesis import settings

# Machines that run tests are shared and slow at times: examples have no deadline of their own.
settings.register_profile("collcomp", deadline=None, print_blob=True)
settings.load_profile("collcomp")
