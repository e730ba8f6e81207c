"""Measurements, run by hand: ratios from one side-by-side run. Nothing here is a test."""
