"""Rewrite passes, one per file, and the machinery that matches, applies, orders and checks them."""
