"""What every job has: its folder, its process, its events and how it fails. Imports neither the store nor torch."""
