"""The values that "auto" stands for: defaults by tuning type and by the size of the data. Pure functions, no torch."""
