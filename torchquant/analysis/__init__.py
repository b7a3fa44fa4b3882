"""Looking into models: what every layer does to the values (compare)."""
