"""Large Parquet tables of numbers: an own encoder, because a general one takes most of the time of a new day."""
