"""From the canonical form to what a target runs best."""
