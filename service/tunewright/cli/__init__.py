"""The command line. Reaches a running service through the SDK only, as any other program would."""
