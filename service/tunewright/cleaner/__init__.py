"""The process of a cleaning: a data file in, a cleaned one out. The steps are in `rows.cleaning`."""
