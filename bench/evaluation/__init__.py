"""Recorded answers and judgements of real models put through the project's own folds."""
