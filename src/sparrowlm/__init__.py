"""Sparrow."""
