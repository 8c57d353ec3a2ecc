"""Cleanings."""
