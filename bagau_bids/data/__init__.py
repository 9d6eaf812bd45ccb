"""Name patterns, registration parameters, report templates, weights and their cards."""
