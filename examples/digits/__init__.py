"""The parts of ``sequential_digits.py``: data, models, training, figure."""
