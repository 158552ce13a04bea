"""Simulated data with a known answer: a bookstore of any size, and the tiny store of films that the tests read."""
