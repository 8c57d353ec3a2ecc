"""Owns the devices: claims jobs, launches trainers and engines, watches both, and makes the store's desired state
so. Imports no `api/`."""
