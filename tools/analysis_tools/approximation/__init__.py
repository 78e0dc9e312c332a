"""What compare_approximation.py compares, and on what."""
