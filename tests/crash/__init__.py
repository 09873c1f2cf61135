"""Trainings that are killed at chosen moments, continued, and compared byte by byte."""
