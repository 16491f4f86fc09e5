"""The update rule that steps with a metanet."""
