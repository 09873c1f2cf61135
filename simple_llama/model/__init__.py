"""Folders, weights and text."""
