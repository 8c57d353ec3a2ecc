"""The process of an evaluation: asks models for answers through the service's gateway, and measures them."""
