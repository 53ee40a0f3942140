"""Full models, one file a family."""
