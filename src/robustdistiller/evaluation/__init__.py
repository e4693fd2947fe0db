"""Weights → numbers: frozen models, small heads, many acoustic conditions, and intervals around every figure."""
