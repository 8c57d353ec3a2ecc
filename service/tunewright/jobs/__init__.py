"""What jobs of all kinds share: the folder, the process, events and failures. Imports neither the store nor torch."""
