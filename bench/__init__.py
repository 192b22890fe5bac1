"""Benchmarks: OSU-style tables, codec speed, training, and the testbed of shaped links."""
