"""Servers for tests and benchmarks: single nodes, clusters, masters behind Sentinels."""
