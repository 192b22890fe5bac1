"""What happened, and what was slow."""

from collcomp.diagnosis.record import Record, Records, Total

__all__ = ["Record", "Records", "Total"]
