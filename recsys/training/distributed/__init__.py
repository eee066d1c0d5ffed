"""Training on several processes: launch, sharded tables, checkpoints that any number of processes can read."""
