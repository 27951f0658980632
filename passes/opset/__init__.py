"""Conversion of the default operator set between versions, with semantics, on the IR."""
