"""Fine-tuning of real pretrained weights on a budget of seconds: what leaving out weight gradients gives, and what it does
not."""
