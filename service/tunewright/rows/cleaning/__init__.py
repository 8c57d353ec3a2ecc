"""Cleans training files: steps on request, each counted, and a new file in canonical rows.

`clean.clean_file` is the way in; `inspect.inspect_rows` only tells what the steps would find. Reads and writes files,
knows no service. Libraries that only one step needs are imported by that step when it is used.
"""
