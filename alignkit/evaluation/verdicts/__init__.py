"""What comparisons come to, in sentences."""
