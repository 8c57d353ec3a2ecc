"""The report on a model that can be handed to a reviewer, and its model card."""
