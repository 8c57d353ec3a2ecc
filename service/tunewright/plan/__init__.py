"""What "auto" becomes: defaults by method and by the size of the data. Pure functions, no torch."""
