"""Benchmarks: each is a command that prints a table of ratios, both sides in one run. No part of the product."""
