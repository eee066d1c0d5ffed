"""The parts that encoder and decoder are built of: attention, experts, tables, caches."""
