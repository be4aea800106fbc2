"""Representation alignment for diffusion models."""
