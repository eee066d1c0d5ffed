"""From a request to its rows: decode, second stage, rules, sessions."""
