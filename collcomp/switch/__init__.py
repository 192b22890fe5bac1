"""The emulated aggregating switch."""
