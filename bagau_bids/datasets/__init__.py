"""Labelled data from elsewhere, made into BIDS data sets to segment, train on and evaluate."""
