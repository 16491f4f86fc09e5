"""Predicted cost of sharded training, beside AdamW and Muon."""
