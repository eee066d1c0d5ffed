"""Next-token training with Lightning: losses, schedule, module, fit."""
