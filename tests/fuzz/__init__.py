"""Generators of random input, seeded and boxed in time: ``python -m tests.fuzz.NAME --seconds 60 --seed 0``. Each prints how
many inputs it has tried, and ends with status 1 and the first faults if there were any."""
