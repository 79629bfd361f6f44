"""Shared by all tests: servers, services, events, waiting, time and the registry of operations."""
