"""The policy: TorchRec tables, encoder over the history, decoder with sparse MoE over semantic-ID codes, dense head."""
