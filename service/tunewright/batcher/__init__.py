"""The process of a batch: answers the requests of a file, through the gateway."""
