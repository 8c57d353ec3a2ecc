"""The command line. It uses a running service through the SDK only, like any other program; `backup` and `restore` use
the data folder."""
