"""One form for each thing: what later passes need not tell apart."""
