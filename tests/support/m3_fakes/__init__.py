"""Fakes for the worker's tests: a model without mathematics that still notices a wrong page."""
