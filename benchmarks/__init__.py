"""Measurements that are run by hand: ratios of things measured side by side. Nothing here is a test."""
