"""The testbed's two-tier network, and ``collcomp bench fabric``: what planning is worth in it."""
