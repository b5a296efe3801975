"""Steps that all ranks or all nodes take together."""
