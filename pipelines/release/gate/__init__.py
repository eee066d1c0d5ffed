"""The gate between a new version and the champion: what is compared, the verdict, the aliases, the record."""
