"""From a bundle to a champion: tracking records, the promotion gate."""
