"""The CPU and GPU kernels: arrays in, arrays out."""
