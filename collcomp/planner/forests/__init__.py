"""The cut that bounds a collective on a topology, and the trees that attain the bound (ForestColl)."""
