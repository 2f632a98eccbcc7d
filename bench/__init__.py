"""Benchmarks: each is a command that prints a table of ratios, both sides measured in one run. No part of the installed product."""
