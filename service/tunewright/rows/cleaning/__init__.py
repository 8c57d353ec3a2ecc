"""Cleans training files: steps on request, each counted, and a new file in canonical rows.

`clean.clean_file` is the way in; what the steps would find is in a file's report (`rows/report`). Reads and writes
files, knows no service. Libraries that only one step needs are imported by that step when it is used.
"""
