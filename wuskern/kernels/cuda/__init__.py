"""GPUs: which way a product takes on one, by what is known of it and by what was measured."""
