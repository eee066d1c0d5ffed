"""Items to semantic IDs: residual quantizers, repair of collisions, versions that only grow, and their diagnostics."""
