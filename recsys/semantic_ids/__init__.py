"""Items to semantic IDs: residual quantizers, repair of collisions, generations that only grow, and their diagnostics."""
