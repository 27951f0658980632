"""Lowering targets: everything that runs a program or writes what a runtime needs."""
