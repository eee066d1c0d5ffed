"""Candidates for millions of users, shard by shard, restartable."""
