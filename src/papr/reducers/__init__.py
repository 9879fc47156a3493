"""What happens to the tokens: one reducer a file; none of them knows a model."""
