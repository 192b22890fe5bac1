"""``collcomp bench switch``: what an aggregating switch does under loss, by window, and beside its model."""
