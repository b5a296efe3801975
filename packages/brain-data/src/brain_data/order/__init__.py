"""The order of an epoch: samplers, plans and their sharding among ranks."""
