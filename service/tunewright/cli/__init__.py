"""The command line. Reaches a running service through the SDK only, as any other program would; `backup` and `restore`
work on its data folder."""
