"""Who sends which chunk to whom in which step: checked without running it, and timed on a topology."""
