"""Measurements that don't depend on the trainer: distances, similarities, probes, reference data and plots."""
