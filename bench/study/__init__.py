"""The study behind `bench/zoo.py`: its questions, what real models said, rounds played on that, attacks, statistics."""
