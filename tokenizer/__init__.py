"""Byte-level BPE: count, train, encode, inspect, export."""
