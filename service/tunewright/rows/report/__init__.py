"""The report of a data file: what is in it, how long its rows are in tokens, and what a job would do with them."""
